"""The activation joined to the linear layers around it (ops/linear_activation.py)."""

from __future__ import annotations

from dynadapt.ops import linear_activation as ops
from dynadapt.ops.activation import GATED

from .lora_gradient import slots_of
from .packing import matrices
from .registry import contiguous, functional, kernel, rows


def _rank(Bt) -> int:
    return 0 if Bt is None else Bt[1]


def _forward_flops(x, weights, bias, A, Bt, slots, scale, kind):
    return ops.forward_flops(x[0], x[1], [w[0] for w in weights], _rank(Bt))


@functional(
    "linear_activation(Tensor x, Tensor[] weights, Tensor? bias, Tensor? A, Tensor? Bt, Tensor? slots, float scale, str kind) -> "
    "(Tensor y, Tensor h, Tensor u)",
    _forward_flops,
    instead="linear and activation",
)
def linear_activation(x, weights, bias, A, Bt, slots, scale, kind):
    h = x.new_empty(x.shape[0], sum(w.shape[0] for w in weights))
    y = x.new_empty(x.shape[0], h.shape[1] // 2 if kind in GATED else h.shape[1])
    u = x.new_empty(x.shape[0], 0 if A is None else A.shape[1])
    yield y, h, u
    bias, A, Bt = contiguous(bias, A, Bt)
    parts = matrices("linear_activation_forward", weights, x)
    call = kernel("linear_activation_forward", x)
    call(rows(x), parts, bias, A, Bt, slots_of(slots, A), scale, kind, None if A is None else u, h, y)


def _backward_flops(dy, weights, A, Bt, slots, scale, h, kind):
    return ops.backward_flops(dy[0], weights[0][1], [w[0] for w in weights], _rank(Bt))


@functional(
    "linear_activation_backward(Tensor dy, Tensor[] weights, Tensor? A, Tensor? Bt, Tensor? slots, float scale, Tensor h, str kind) -> "
    "(Tensor dU, Tensor dh)",
    _backward_flops,
    gradient=True,
)
def linear_activation_backward(dy, weights, A, Bt, slots, scale, h, kind):
    dU, dh = dy.new_empty(dy.shape[0], 0 if A is None else A.shape[1]), h.new_empty(h.shape)
    yield dU, dh
    dy, A, Bt, h = contiguous(dy, A, Bt, h)
    parts, dx = matrices("linear_activation_backward", weights, dy), dy.new_empty(dy.shape[0], weights[0].shape[1])
    call = kernel("linear_activation_backward", dy)
    call(dy, parts, A, Bt, slots_of(slots, A), scale, h, kind, None if A is None else dU, dx, dh, None)
