"""Rows in chunks, so that a buffer of [rows, vocabulary] has a size that does not grow with the number of tokens."""

from __future__ import annotations

import torch
import triton

BUDGET = 256 << 20  # bytes of one chunk's buffer: at 128,256 tokens in bfloat16 1,024 rows, plenty for a product to fill a GPU


def chunks(rows: int, width: int, dtype: torch.dtype):
    """(first, end) of equal chunks, multiples of 128 rows, whose [rows, width] buffer keeps to BUDGET."""
    if not rows:
        return []
    most = max(128, BUDGET // (width * dtype.itemsize) // 128 * 128)
    size = triton.cdiv(triton.cdiv(rows, triton.cdiv(rows, most)), 128) * 128
    return [(lo, min(lo + size, rows)) for lo in range(0, rows, size)]


def padded_rows(rows: int, width: int, dtype: torch.dtype) -> int:
    """Rows of the buffer that all chunks use."""
    return max((triton.cdiv(hi - lo, 128) * 128 for lo, hi in chunks(rows, width, dtype)), default=0)
