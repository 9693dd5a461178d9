"""Cases of the delta rule's gates."""

from __future__ import annotations

from .base import Draw, Op, OpCase

DELTA_GATES_FORWARD = Op(
    "delta_gates_forward",
    "g beta",
    wide="a_log dt_bias g beta",
    rows="a b g beta",
    gradients={"a": "da", "b": "db", "a_log": "da_log", "dt_bias": "ddt_bias"},
    backward="delta_gates_backward",
)
DELTA_GATES_BACKWARD = Op(
    "delta_gates_backward",
    "da db da_log ddt_bias",
    changed="da_log ddt_bias",
    wide="dg dbeta a_log dt_bias da_log ddt_bias",
    rows="dg dbeta a b da db",
)


def _inputs(d: Draw, n, heads):
    return {"a": d.rows(n, heads), "b": d.rows(n, heads), "a_log": d.wide(heads), "dt_bias": d.wide(heads)}


def delta_gates_forward(d: Draw, n: int, heads: int) -> OpCase:
    """n rows of ``heads`` value heads."""
    arguments = {**_inputs(d, n, heads), "g": d.out(n, heads, wide=True), "beta": d.out(n, heads, wide=True)}
    return OpCase(DELTA_GATES_FORWARD, d.dtype, arguments, bytes=12 * n * heads)


def delta_gates_backward(d: Draw, n: int, heads: int, learns: bool = True) -> OpCase:
    """``learns``: so do a_log and dt_bias."""
    arguments = {
        "dg": d.wide(n, heads),
        "dbeta": d.wide(n, heads),
        **_inputs(d, n, heads),
        "da": d.out(n, heads),
        "db": d.out(n, heads),
        "da_log": d.wide(heads) if learns else None,
        "ddt_bias": d.wide(heads) if learns else None,
    }
    return OpCase(DELTA_GATES_BACKWARD, d.dtype, arguments, bytes=16 * n * heads)
