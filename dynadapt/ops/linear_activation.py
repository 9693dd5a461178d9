"""The feed-forward's activation beside the linear layers around it: what ops/linear.py and ops/activation.py define, in one op each way.

forward:   h = x W^T + b + scale (x A^T) Bt, y = act(h)             gate and up, or the one weight in front of a GELU
backward:  dh = act'(h) (dy W + dU A), dU = scale dy Bt^T           of the linear behind it

h is rounded to the arithmetic's dtype before it is activated, and so is the gradient of y before it goes on: the results are those of the two
ops one after the other. Where nothing is gained by joining them a backend does just that.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import linear
from .activation import activation_backward, activation_forward


def linear_activation_forward(x, parts, bias, A, Bt, slots, scale, kind, u, h, y) -> None:
    """h [N, 2 F] (kinds with a gate) or [N, F], u = x A^T, and y [N, F]; arguments as ``linear_forward`` and ``activation_forward`` take them."""
    linear.linear_forward(x, parts, bias, A, Bt, slots, scale, u, h)
    activation_forward(h, kind, y)


def linear_activation_backward(dy, parts, A, Bt, slots, scale, h, kind, dU, dx, dh, y) -> None:
    """dh like h from the gradient dy [N, O] of what the linear behind the activation gave; y [N, F], when given, becomes the activation again.

    dx [N, F] is room for the gradient of y; what it holds behind the call is not defined.
    """
    linear.linear_backward(dy, parts, A, Bt, slots, scale, dU, dx)
    activation_backward(dx, h, kind, dh, y)


def forward_flops(rows: int, k: int, part_sizes, rank: int | Sequence[int]) -> int:
    """Those of ``linear_forward``."""
    return linear.forward_flops(rows, k, part_sizes, rank)


def backward_flops(rows: int, k: int, part_sizes, rank: int | Sequence[int]) -> int:
    """Those of ``linear_backward``."""
    return linear.backward_flops(rows, k, part_sizes, rank)
