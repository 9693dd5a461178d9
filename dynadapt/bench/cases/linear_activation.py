"""Cases of the activation joined to the linear layers around it."""

from __future__ import annotations

from dynadapt.ops import linear_activation as ops
from dynadapt.ops.activation import GATED

from .activation import activation_forward
from .base import Draw, Op, OpCase
from .linear import linear_backward, linear_forward

LINEAR_ACTIVATION_FORWARD = Op("linear_activation_forward", "u h y", frozen="parts", rows="x u h y", streams="slots")
LINEAR_ACTIVATION_BACKWARD = Op("linear_activation_backward", "dU dh y", frozen="parts", rows="dy h dU dx dh y", streams="slots")


def linear_activation_forward(
    d: Draw, n: int, k: int, f: int, rank: int | tuple, streams: int = 1, kind: str = "swiglu", bias: bool = True, base: str = "same"
) -> OpCase:
    """n rows of k inputs, f outputs of the activation; adapters as in ``linear_forward``."""
    parts = (f, f) if kind in GATED else (f,)
    case = linear_forward(d, n, k, parts, rank, streams, bias, base=base)
    given = {("h" if name == "y" else name): value for name, value in case.arguments.items()}
    before = {name: given[name] for name in ("x", "parts", "bias", "A", "Bt", "slots", "scale")}
    arguments = {**before, "kind": kind, "u": given["u"], "h": given["h"], "y": d.out(n, f)}
    return OpCase(
        LINEAR_ACTIVATION_FORWARD, d.dtype, arguments, kind, case.bytes + 2 * n * f, ops.forward_flops(n, k, parts, rank), base=base
    )


def linear_activation_backward(
    d: Draw, n: int, out: int, f: int, rank: int | tuple, streams: int = 1, kind: str = "swiglu", again: bool = True, base: str = "same"
) -> OpCase:
    """n rows of the gradient of ``out`` values, behind f of an activation; ``again``: the activation is written once more."""
    case = linear_backward(d, n, f, (out,), rank, streams, base=base)
    h = activation_forward(d, n, f, kind)["h"]
    before = {name: case[name] for name in ("dy", "parts", "A", "Bt", "slots", "scale")}
    written = {"dU": case["dU"], "dx": case["dx"], "dh": d.out(*h.shape), "y": d.out(n, f) if again else None}
    moved = case.bytes + 2 * (2 * h.numel() + n * f * (1 if again else 0) - n * f)
    flops = ops.backward_flops(n, f, (out,), rank)
    return OpCase(LINEAR_ACTIVATION_BACKWARD, d.dtype, {**before, "h": h, "kind": kind, **written}, kind, moved, flops, base=base)
