"""Cases of the bias' gradient."""

from __future__ import annotations

from .base import Draw, Op, OpCase

BIAS_GRADIENT = Op("bias_gradient", "db", changed="db", wide="db", rows="dy")


def bias_gradient(d: Draw, n: int, out: int, label: str = "") -> OpCase:
    return OpCase(BIAS_GRADIENT, d.dtype, {"dy": d.rows(n, out), "db": d.wide(out)}, label, 2 * n * out + 8 * out)
