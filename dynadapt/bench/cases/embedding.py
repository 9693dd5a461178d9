"""Cases of the token embedding."""

from __future__ import annotations

from dynadapt.ops import embedding as ops

from .base import Draw, Op, OpCase

EMBEDDING_FORWARD = Op(
    "embedding_forward", "out", rows="tokens positions out", gradients={"table": "dtable"}, backward="embedding_backward"
)
EMBEDDING_BACKWARD = Op("embedding_backward", "dtable", changed="dtable", wide="dtable", rows="tokens dout")
ADAPTED_EMBEDDING_FORWARD = Op("adapted_embedding_forward", "out", changed="out", rows="tokens out", streams="slots")
ADAPTED_EMBEDDING_BACKWARD = Op("adapted_embedding_backward", "dA dBt", wide="dA dBt", rows="tokens dout", streams="slots")


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


def _adapter(d: Draw, h: int, vocabulary: int, rank: int, streams: int) -> dict:
    A, Bt = d.per_slot(d.slot_count(streams), (rank, vocabulary), (rank, h))
    return {"A": A, "Bt": Bt, "slots": d.slots(streams), "scale": 0.5}


def adapted_embedding_forward(d: Draw, n: int, h: int, vocabulary: int, rank: int, streams: int = 1) -> OpCase:
    arguments = {"tokens": d.integers(vocabulary, n), **_adapter(d, h, vocabulary, rank, streams), "out": d.acts(n, h)}
    moved = 4 * n * h + 8 * n + 2 * rank * (n + streams * h)
    return OpCase(ADAPTED_EMBEDDING_FORWARD, d.dtype, arguments, bytes=moved, flops=ops.adapted_forward_flops(n, h, rank))


def adapted_embedding_backward(d: Draw, n: int, h: int, vocabulary: int, rank: int, streams: int = 1, accumulate: bool = False) -> OpCase:
    """Slots of no stream hold numbers, which have to stay."""
    arguments = {"tokens": d.integers(vocabulary, n), "dout": d.acts(n, h), **_adapter(d, h, vocabulary, rank, streams)}
    dA, dBt = d.per_slot(len(arguments["A"]), (rank, vocabulary), (rank, h), wide=True)
    if not accumulate:
        dA[arguments["slots"].long()] = dBt[arguments["slots"].long()] = float("nan")
    arguments |= {"dA": dA, "dBt": dBt, "accumulate": accumulate}
    moved = 2 * n * h + 8 * n + rank * (2 * n + streams * (6 * h + 4 * vocabulary))
    return OpCase(ADAPTED_EMBEDDING_BACKWARD, d.dtype, arguments, bytes=moved, flops=ops.adapted_backward_flops(n, h, rank))
