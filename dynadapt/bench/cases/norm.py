"""Cases of RMSNorm and LayerNorm with the residual's sum."""

from __future__ import annotations

from .base import Draw, Op, OpCase
from .calls import after_reference

NORM_FORWARD = Op(
    "norm_forward",
    "res y stat",
    wide="stat",
    rows="x delta res y stat",
    gradients={"x": "dx", "delta": "dx", "weight": "dweight", "bias": "dbias"},
    backward="norm_backward",
)
NORM_BACKWARD = Op("norm_backward", "dx dweight dbias y", changed="dweight dbias", wide="stat dweight dbias", rows="dy res stat dres dx y")


def norm_forward(d: Draw, n: int, h: int, kind: str = "rms", delta: bool = True, wide: bool = False) -> OpCase:
    """n rows of h; ``delta``: added before the norm, the sum written to ``res``; ``wide``: the weight is float32."""
    arguments = {
        "x": d.acts(n, h) + 0.5,
        "delta": d.acts(n, h) if delta else None,
        "weight": d.wide(h) if wide else d.acts(h),
        "bias": d.acts(h) if kind == "layer" else None,
        "eps": 1e-5,
        "kind": kind,
        "res": d.out(n, h) if delta else None,
        "y": d.out(n, h),
        "stat": d.out(n, 2, wide=True),
    }
    return OpCase(NORM_FORWARD.with_wide("weight") if wide else NORM_FORWARD, d.dtype, arguments, kind, bytes=(8 if delta else 4) * n * h)


def norm_backward(
    d: Draw, n: int, h: int, kind: str = "rms", dres: bool = True, learns: bool = True, again: bool = True, wide: bool = False
) -> OpCase:
    """``dres``: a gradient that reaches the sum itself; ``learns``: weight and bias do; ``again``: the output is written once more; ``wide`` as forward's."""
    f = after_reference(norm_forward(d, n, h, kind, delta=False, wide=wide))
    arguments = {
        "dy": d.acts(n, h),
        "res": f["x"],
        "weight": f["weight"],
        "stat": f["stat"],
        "kind": kind,
        "dres": d.acts(n, h) if dres else None,
        "dx": d.out(n, h),
        "dweight": d.wide(h) if learns else None,
        "dbias": d.wide(h) if learns else None,
        "bias": f["bias"],
        "y": d.out(n, h) if again else None,
    }
    return OpCase(NORM_BACKWARD.with_wide("weight") if wide else NORM_BACKWARD, d.dtype, arguments, kind, bytes=(8 if dres else 6) * n * h)
