"""How a patch says which bf16 weights changed, and to what: numbers that are mostly one byte long, then deflated.

The bits of a bf16 number become a 16-bit integer in the order of the numbers, so that neighbours are 1 apart (-0 and 0 too), and a change
is a difference of two of them: after a small step nearly all are 1 or -1. Positions are gaps between one change and the next. Both are
LEB128: 7 bits a byte, the lowest first, the high bit set where another byte follows; a difference d is zigzag, 2d - 1 for d > 0 and
-2d - 2 for d < 0, 0 being none. Which weights change is close to random and their gaps are near their entropy as they are; signs and
magnitudes are what deflate makes small.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

MOST_BYTES = 9  # of one number, of at most 63 bits


def ordered(weights: torch.Tensor) -> np.ndarray:
    """int32 [n] in the order of bf16 numbers [n]."""
    bits = weights.contiguous().view(torch.int16).numpy().astype(np.int32)
    return np.where(bits < 0, ~(bits & 0x7FFF), bits)


def unordered(values: np.ndarray) -> torch.Tensor:
    """The inverse of ``ordered``."""
    bits = np.where(values < 0, (~values & 0x7FFF) | 0x8000, values).astype(np.uint16)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def pack(numbers: np.ndarray) -> bytes:
    """Numbers of at least 0 as deflated LEB128."""
    left = numbers.astype(np.uint64)
    count = np.ones(len(left), dtype=np.int64)  # bytes of each
    for k in range(1, MOST_BYTES):
        longer = left >> np.uint64(7 * k) != 0
        if not longer.any():
            break
        count[longer] = k + 1
    ends = np.cumsum(count)
    packed = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for k in range(int(count.max(initial=0))):
        there = count > k
        part = (left[there] >> np.uint64(7 * k)).astype(np.uint8) & 0x7F
        packed[(ends - count)[there] + k] = part | np.where(count[there] > k + 1, 0x80, 0).astype(np.uint8)
    return zlib.compress(packed.tobytes(), 9)


def unpack(stored: bytes, count: int) -> np.ndarray:
    """int64 [count] of what ``pack`` gave.

    Raises:
        ValueError: it is not that; no more memory is taken than so many numbers can need.
    """
    reader = zlib.decompressobj()
    try:
        plain = reader.decompress(stored, MOST_BYTES * count + 1)
    except zlib.error as error:
        raise ValueError(f"not deflated data ({error})") from None
    packed = np.frombuffer(plain, dtype=np.uint8)
    ends = np.flatnonzero(packed < 0x80)
    if not reader.eof or reader.unused_data or len(ends) != count or len(packed) != (ends[-1] + 1 if count else 0):
        raise ValueError(f"not {count} numbers")
    begins = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    lengths, values = ends - begins + 1, np.zeros(count, dtype=np.int64)
    if count and lengths.max() > MOST_BYTES:
        raise ValueError("a number of more than 63 bits")
    for k in range(int(lengths.max(initial=0))):
        there = lengths > k
        values[there] |= (packed[begins[there] + k] & 0x7F).astype(np.int64) << (7 * k)
    return values


def zigzag(differences: np.ndarray) -> np.ndarray:
    """Numbers of at least 0 for differences other than 0."""
    return np.where(differences > 0, 2 * differences - 1, -2 * differences - 2)


def unzigzag(numbers: np.ndarray) -> np.ndarray:
    """The inverse of ``zigzag``."""
    return np.where(numbers % 2 == 1, (numbers + 1) // 2, -(numbers // 2) - 1)
