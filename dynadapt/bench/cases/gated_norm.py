"""Cases of the gated norm."""

from __future__ import annotations

from .base import Draw, Op, OpCase
from .calls import after_reference

GATED_NORM_FORWARD = Op(
    "gated_norm_forward",
    "y rstd",
    wide="rstd",
    rows="x gate y rstd",
    gradients={"x": "dx", "gate": "dgate", "weight": "dweight"},
    backward="gated_norm_backward",
)
GATED_NORM_BACKWARD = Op("gated_norm_backward", "dx dgate dweight", changed="dweight", wide="rstd dweight", rows="dy x gate rstd dx dgate")


def gated_norm_forward(d: Draw, n: int, heads: int, head: int) -> OpCase:
    """n rows of ``heads`` heads of ``head``."""
    width = heads * head
    arguments = {
        "x": d.acts(n, width),
        "gate": d.rows(n, width),
        "weight": d.acts(head),
        "eps": 1e-6,
        "d": head,
        "y": d.out(n, width),
        "rstd": d.out(n, heads, wide=True),
    }
    return OpCase(GATED_NORM_FORWARD, d.dtype, arguments, bytes=6 * n * width)


def gated_norm_backward(d: Draw, n: int, heads: int, head: int, learns: bool = True) -> OpCase:
    f = after_reference(gated_norm_forward(d, n, heads, head))
    arguments = {
        "dy": d.acts(*f["y"].shape),
        **{name: f[name] for name in ("x", "gate", "weight", "rstd", "d")},
        "dx": d.out(*f["y"].shape),
        "dgate": d.out(*f["y"].shape),
        "dweight": d.wide(head) if learns else None,
    }
    return OpCase(GATED_NORM_BACKWARD, d.dtype, arguments, bytes=10 * n * f["x"].shape[1])
