"""The keys and values of [memory; segment] side by side, keys rotated: what both walks over them read (attention.py).

Keys are stored before rotation because a memory entry's position changes when the window moves, and memory lies apart from the segment. Done in
the walks, rotation is repeated by every block of queries of every query head, between a load and the product that waits for it; here each
key is rotated once, in a launch of its own, and the walks read one array whose tiles go to the tensor cores as they arrive.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_parts import WALKED, halves, key_variants, rows_of, stream_of
from .common import Variant, wait_for_previous

ROWS = 32  # of a program


@triton.jit(do_not_specialize=["segment", "memory", "window"])
def dynadapt_attention_keys(
    qkv,
    mem_k,
    mem_v,
    mem_len,
    slots,
    cos,
    sin,
    window,
    keys,
    values,
    segment,
    memory,
    mem_slot,
    mem_row,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BR: tl.constexpr,
):
    """keys [S HKV, memory + T, 2 HP], both halves padded with zeros, and values [S HKV, memory + T, DP], of which the first length + T rows
    are written, with a window those that a walk may read. Grid (key and value heads of all streams, blocks of BR rows of memory and then of the segment)."""
    wait_for_previous()
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    stream, kv_head = tl.program_id(0) // HKV, tl.program_id(0) % HKV
    slot, length = stream_of(slots, mem_len, stream)
    x = qkv + (stream * segment).to(tl.int64) * WIDTH
    k, v = x + (HQ + kv_head) * D, x + (HQ + HKV + kv_head) * D
    block, end, stride, position = tl.program_id(1), segment, WIDTH, length
    if mem_k is not None:
        memory_blocks = tl.cdiv(memory, BR)
        in_memory = block < memory_blocks
        block -= tl.where(in_memory, 0, memory_blocks)
        k = tl.where(in_memory, mem_k + slot * mem_slot + kv_head * D, k)
        v = tl.where(in_memory, mem_v + slot * mem_slot + kv_head * D, v)
        end, stride = tl.where(in_memory, length, segment), tl.where(in_memory, mem_row, WIDTH)
        position = tl.where(in_memory, 0, length)
    rows = block * BR + tl.arange(0, BR)
    exist = rows < end
    if window is not None:  # of what lies before it only what the first tile of a walk may begin with
        exist &= position + rows > length - window - WALKED
    k1, k2 = halves(k, stride, rows, exist, cos, sin, position, D, HP)
    v_rows = rows_of(v, stride, rows, exist, D, DP)
    first = tl.program_id(0).to(tl.int64) * (memory + segment) + position
    at = keys + (first + rows)[:, None] * (2 * HP) + tl.arange(0, HP)[None, :]
    tl.store(at, k1, mask=exist[:, None])
    tl.store(at + HP, k2, mask=exist[:, None])
    tl.store(values + (first + rows)[:, None] * DP + tl.arange(0, DP)[None, :], v_rows, mask=exist[:, None])


VARIANTS: list[Variant] = key_variants(dynadapt_attention_keys, ROWS)
