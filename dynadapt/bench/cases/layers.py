"""Cases of the activations and of the token embedding."""

from __future__ import annotations

from .base import Draw, Op, OpCase

ACTIVATION_FORWARD = Op("activation_forward", "y", rows="h y", gradients={"h": "dh"}, backward="activation_backward")
ACTIVATION_BACKWARD = Op("activation_backward", "dh y", rows="dy h dh y")
EMBEDDING_FORWARD = Op(
    "embedding_forward", "out", rows="tokens positions out", gradients={"table": "dtable"}, backward="embedding_backward"
)
EMBEDDING_BACKWARD = Op("embedding_backward", "dtable", changed="dtable", wide="dtable", rows="tokens dout")


def activation_forward(d: Draw, n: int, f: int, kind: str = "swiglu") -> OpCase:
    """n rows of f outputs; swiglu reads 2 f inputs."""
    width = 2 * f if kind == "swiglu" else f
    return OpCase(ACTIVATION_FORWARD, d.dtype, {"h": d.acts(n, width, scale=3), "kind": kind, "y": d.out(n, f)}, kind, 2 * n * (width + f))


def activation_backward(d: Draw, n: int, f: int, kind: str = "swiglu", again: bool = True) -> OpCase:
    """``again``: the activation is written once more."""
    h = activation_forward(d, n, f, kind)["h"]
    arguments = {"dy": d.acts(n, f), "h": h, "kind": kind, "dh": d.out(*h.shape), "y": d.out(n, f) if again else None}
    return OpCase(ACTIVATION_BACKWARD, d.dtype, arguments, kind, 2 * (2 * h.numel() + n * f * (2 if again else 1)))


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
