"""Cases of the gradient of a weight's rows, alone and with the update, and of the rows' scores."""

from __future__ import annotations

from dynadapt.ops import weight_gradient as ops

from .base import Draw, Op, OpCase

WEIGHT_GRADIENT = Op("weight_gradient", "dW", wide="dW", rows="dy x")
ROW_SCORES = Op("row_scores", "out", wide="out", rows="dy x")


def weight_inputs(d: Draw, n: int, out: int, k: int, chosen: int | None) -> dict:
    """dy, x and which rows of the weight [out, k] are asked for (None: all)."""
    rows = None
    if chosen is not None:
        rows = d.permutation(out)[:chosen].int() if d.odd else d.permutation(out)[:chosen].sort().values.int()
    return {"dy": d.rows(n, out), "x": d.rows(n, k, dense=True), "rows": rows}


def weight_gradient(d: Draw, n: int, out: int, k: int, chosen: int | None = None, accumulate: bool = False, label: str = "") -> OpCase:
    count = chosen or out
    dW = d.wide(count, k) if accumulate else d.out(count, k, wide=True)
    arguments = {**weight_inputs(d, n, out, k, chosen), "dW": dW, "accumulate": accumulate}
    moved = 2 * n * (count + k) + 4 * count * k
    return OpCase(WEIGHT_GRADIENT, d.dtype, arguments, label, moved, ops.flops(n, count, k))


def row_scores(d: Draw, n: int, out: int, k: int, label: str = "") -> OpCase:
    arguments = {"dy": d.rows(n, out), "x": d.rows(n, k, dense=True), "out": d.out(out, wide=True)}
    return OpCase(ROW_SCORES, d.dtype, arguments, label, 2 * n * (k + out) + 4 * out)
