"""Cases of the token embedding."""

from __future__ import annotations

from .base import Draw, Op, OpCase

EMBEDDING_FORWARD = Op(
    "embedding_forward", "out", rows="tokens positions out", gradients={"table": "dtable"}, backward="embedding_backward"
)
EMBEDDING_BACKWARD = Op("embedding_backward", "dtable", changed="dtable", wide="dtable", rows="tokens dout")


def embedding_forward(d: Draw, n: int, h: int, vocabulary: int, places: int | None = None) -> OpCase:
    """``places``: learned positions, of which rows take turns (None: none)."""
    arguments = {
        "tokens": d.integers(vocabulary, n),
        "table": d.acts(vocabulary, h),
        "position_table": None if places is None else d.acts(places, h),
        "positions": None if places is None else d.integers(places, n),
        "out": d.out(n, h),
    }
    return OpCase(EMBEDDING_FORWARD, d.dtype, arguments, bytes=4 * n * h + 8 * n)


def embedding_backward(d: Draw, n: int, h: int, vocabulary: int, tokens=None) -> OpCase:
    """``tokens``: int64 [n] instead of a drawing."""
    tokens = d.integers(vocabulary, n) if tokens is None else tokens
    touched = len(tokens.unique())  # rows of the table that are read and written
    arguments = {"tokens": tokens, "dout": d.acts(n, h), "dtable": d.wide(vocabulary, h)}
    return OpCase(EMBEDDING_BACKWARD, d.dtype, arguments, bytes=2 * n * h + 8 * n + 8 * touched * h)
