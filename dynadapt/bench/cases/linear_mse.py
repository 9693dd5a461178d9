"""Cases of the linear read-out with squared error."""

from __future__ import annotations

from dynadapt.ops import linear_mse as ops

from .base import Draw, Op, OpCase

LINEAR_MSE = Op(
    "linear_mse",
    "pred loss dh dweight dbias",
    changed="dweight dbias",
    wide="bias target weights pred loss dweight dbias",
    rows="h target weights pred loss dh",
)


def linear_mse(d: Draw, n: int, h: int, bias: bool = True, weights: bool = True, gradients: bool = True, label: str = "") -> OpCase:
    """``gradients``: of the hidden states, the read-out and its bias (where it has one)."""
    arguments = {
        "h": d.acts(n, h),
        "weight": d.acts(h, scale=h**-0.5),
        "bias": d.wide(1) if bias else None,
        "target": d.wide(n),
        "weights": d.row_weights(n) if weights else None,
        "pred": d.out(n, wide=True),
        "loss": d.out(n, wide=True),
        "dh": d.out(n, h) if gradients else None,
        "dweight": d.wide(h) if gradients else None,
        "dbias": d.wide(1) if gradients and bias else None,
    }
    # dbias is one sum of terms that cancel: its error is that of the terms.
    slack = 4.0 if arguments["dbias"] is not None else 1.0
    return OpCase(LINEAR_MSE, d.dtype, arguments, label, 4 * n * h + 16 * n, ops.flops(n, h, gradients), slack)
