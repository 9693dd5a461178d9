"""Tiles of an adapter's gradient: columns of a stream's dA or of one part of its dBt, summed over tokens, and sums of their chunks."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import locate, part_columns
from .token_sums import tile_times_left


@triton.jit
def scale_of(part, scales):
    """The scale of part 0, 1 or 2, or of a block of such numbers."""
    s0, s1, s2 = scales
    return tl.where(part == 0, s0, tl.where(part == 1, s1, s2))


@triton.jit
def tile_of_a(
    pid, x, dU, tokens, K: tl.constexpr, W: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, CHUNK: tl.constexpr
):
    """(gradient [BC, BR], its columns [BC, 1] in the stream's dA [W, K], which of them exist, (first row, where rows end, what
    is between two rows))."""
    BLOCKS: tl.constexpr = (W + BR - 1) // BR
    r0 = pid % BLOCKS * BR  # row blocks of one column tile are neighbours: x comes from L2 after the first
    c0 = pid // BLOCKS * BC
    gradient = tile_times_left(dU, x, tokens, (r0, W), (c0, K), BR, BC, BT, CHUNK)
    c = c0 + tl.arange(0, BC)[:, None]
    return gradient, c, c < K, (r0, W, K)


@triton.jit
def tile_of_b(
    pid,
    dy,
    u,
    tokens,
    sizes,
    width,
    scales,
    R: tl.constexpr,
    R0: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    EQUAL: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The same of the stream's dBt [R, O], rows ``width`` apart, and at the end the scale that the gradient is still to be multiplied by; no
    tile spans two parts."""
    O0, O1, O2 = sizes
    BLOCKS: tl.constexpr = (R + BR - 1) // BR
    r0 = pid % BLOCKS * BR
    part, start, size, c0 = locate(pid // BLOCKS, O0, O1, O2, BC)
    c0, c_end = start + c0, start + size
    if EQUAL:
        total, scale = tile_times_left(u, dy, tokens, (part * R + r0, part * R + R), (c0, c_end), BR, BC, BT, CHUNK), scales[0]
    else:
        row, rank = part_columns(part, R0, R1, R2)
        total = tile_times_left(u, dy, tokens, (row + r0, row + rank), (c0, c_end), BR, BC, BT, CHUNK)
        scale = scale_of(part, scales)
    c = c0 + tl.arange(0, BC)[:, None]
    return total, c, c < c_end, (r0, R, width), scale


@triton.jit
def scales_at(offset, scales, sizes, EQUAL: tl.constexpr):
    """The scales of the parts that ``offset`` of a dBt [R, O] is in."""
    O0, O1, O2 = sizes
    if EQUAL:
        found = scales[0]
    else:
        column = offset % (O0 + O1 + O2)
        found = scale_of((column >= O0).to(tl.int32) + (column >= O0 + O1).to(tl.int32), scales)
    return found


@triton.jit
def sum_of_chunks(partial, s, offset, mask, streams, chunks, size):
    total = tl.zeros_like(offset).to(tl.float32)
    for chunk in range(0, chunks):
        total += tl.load(partial + (chunk * streams + s).to(tl.int64) * size + offset, mask=mask, other=0.0)
    return total


@triton.jit
def placed(offset, sizes, row):
    """Where what is at ``offset`` of a packed dBt [R, O] is where rows are ``row`` apart."""
    O0, O1, O2 = sizes
    return offset // (O0 + O1 + O2) * row + offset % (O0 + O1 + O2)
