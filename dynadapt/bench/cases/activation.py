"""Cases of the activations."""

from __future__ import annotations

from dynadapt.ops.activation import GATED

from .base import Draw, Op, OpCase

ACTIVATION_FORWARD = Op("activation_forward", "y", rows="h y", gradients={"h": "dh"}, backward="activation_backward")
ACTIVATION_BACKWARD = Op("activation_backward", "dh y", rows="dy h dh y")


def activation_forward(d: Draw, n: int, f: int, kind: str = "swiglu") -> OpCase:
    """n rows of f outputs; swiglu, geglu_tanh and glu read 2 f inputs."""
    width = 2 * f if kind in GATED else f
    return OpCase(ACTIVATION_FORWARD, d.dtype, {"h": d.acts(n, width, scale=3), "kind": kind, "y": d.out(n, f)}, kind, 2 * n * (width + f))


def activation_backward(d: Draw, n: int, f: int, kind: str = "swiglu", again: bool = True) -> OpCase:
    """``again``: the activation is written once more."""
    h = activation_forward(d, n, f, kind)["h"]
    arguments = {"dy": d.acts(n, f), "h": h, "kind": kind, "dh": d.out(*h.shape), "y": d.out(n, f) if again else None}
    return OpCase(ACTIVATION_BACKWARD, d.dtype, arguments, kind, 2 * (2 * h.numel() + n * f * (2 if again else 1)))
