"""Cases of the norm of query and key heads."""

from __future__ import annotations

from .base import Draw, Op, OpCase
from .calls import after_reference

HEAD_NORM_FORWARD = Op(
    "head_norm_forward",
    "out rstd",
    wide="rstd",
    rows="qkv out rstd",
    gradients={"qkv": "dqkv", "q_weight": "dq_weight", "k_weight": "dk_weight"},
    backward="head_norm_backward",
)
HEAD_NORM_BACKWARD = Op(
    "head_norm_backward",
    "dqkv dq_weight dk_weight",
    changed="dq_weight dk_weight",
    wide="rstd dq_weight dk_weight",
    rows="dout qkv rstd dqkv",
)

_WEIGHTS = "q_weight k_weight"


def head_norm_forward(d: Draw, n: int, hq: int, hkv: int, head: int, together: bool = False, wide: bool = False) -> OpCase:
    """n rows of hq query heads and hkv key and value heads, each of ``head``; ``together``: heads of a kind are normalised as one;
    ``wide``: the weights are float32."""
    width, weights = (hq + 2 * hkv) * head, d.wide if wide else d.acts
    arguments = {
        "qkv": d.acts(n, width),
        "q_weight": weights(hq * head if together else head),
        "k_weight": weights(hkv * head if together else head),
        "eps": 1e-6,
        "hq": hq,
        "hkv": hkv,
        "d": head,
        "out": d.out(n, width),
        "rstd": d.out(n, 2 if together else hq + hkv, wide=True),
    }
    return OpCase(HEAD_NORM_FORWARD.with_wide(_WEIGHTS) if wide else HEAD_NORM_FORWARD, d.dtype, arguments, bytes=4 * n * width)


def head_norm_backward(
    d: Draw, n: int, hq: int, hkv: int, head: int, learns: str = "qk", together: bool = False, wide: bool = False
) -> OpCase:
    """``learns``: the weights whose gradients are asked for, of "qk"; the rest as forward's."""
    f = after_reference(head_norm_forward(d, n, hq, hkv, head, together, wide))
    arguments = {
        "dout": d.acts(*f["qkv"].shape),
        **{name: f[name] for name in ("qkv", "q_weight", "k_weight", "rstd", "hq", "hkv", "d")},
        "dqkv": d.out(*f["qkv"].shape),
        **{f"d{name}_weight": d.wide(len(f[f"{name}_weight"])) if name in learns else None for name in "qk"},
    }
    return OpCase(HEAD_NORM_BACKWARD.with_wide(_WEIGHTS) if wide else HEAD_NORM_BACKWARD, d.dtype, arguments, bytes=6 * f["qkv"].numel())
