"""Rows in chunks, so that a buffer of [rows, vocabulary] has a size that does not grow with the number of tokens.

A chunk's second product, dh = d W [rows, H], has few tiles: of 128 x 256, 64 for 1,024 rows of 2,048 columns, half of an H100. So a chunk has
as many rows as fill the multiprocessors once, where its buffer keeps to twice BUDGET, and a multiple of these where BUDGET has room for it.
"""

from __future__ import annotations

import torch
import triton

from .tiles import multiprocessors

BUDGET = 256 << 20  # bytes of one chunk's buffer, which may be twice that to fill the card
ROWS, COLUMNS = 128, 256  # of a tile that large products have


def _most(h: torch.Tensor, width: int) -> int:
    """Rows of a chunk, at most."""
    allowed = lambda budget: max(ROWS, budget // (width * h.dtype.itemsize) // ROWS * ROWS)  # noqa: E731
    filling = max(1, multiprocessors(h.device) // triton.cdiv(h.shape[1], COLUMNS)) * ROWS
    within = allowed(BUDGET)
    return within // filling * filling if filling <= within else min(filling, allowed(2 * BUDGET))


def chunks(h: torch.Tensor, width: int):
    """(first, end) of equal chunks of h [rows, H], multiples of 128 rows, whose [rows, width] buffer keeps to what is said above."""
    rows = len(h)
    if not rows:
        return []
    size = triton.cdiv(triton.cdiv(rows, triton.cdiv(rows, _most(h, width))), ROWS) * ROWS
    return [(lo, min(lo + size, rows)) for lo in range(0, rows, size)]


def padded_rows(h: torch.Tensor, width: int) -> int:
    """Rows of the buffer that all chunks use."""
    return max((triton.cdiv(hi - lo, ROWS) * ROWS for lo, hi in chunks(h, width)), default=0)
