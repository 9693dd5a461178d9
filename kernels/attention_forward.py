"""The forward kernel of attention (attention.py says what is the same in all of them).

A program owns BM queries of one head of one stream. It rotates them once, then walks the stream's memory as far
as it is filled (the fill is read on the device, so a short memory costs what it is long) and the segment up to its
diagonal, with a running maximum and sum (Dao 2023, arXiv 2307.08691). Scores never leave the chip. Keys are stored
before rotation because a memory entry's position changes when the window moves; they are rotated as they arrive, in two
halves: q k^T = q1 k1^T + q2 k2^T, so that no half has to be exchanged between threads. That costs 3 d elementwise
operations a key and program, next to 4 BM d in products; cos and sin come from L2. Memory and segment are one masked loop
that changes its addresses on the way: apart, or with the diagonal apart, they need up to 80 registers more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_parts import first_tile, halves, rows_of, scores, stream_of, tile_of, variants
from .common import Variant, dot, wait_for_previous

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Where a running maximum starts: not at -inf, as a row may see no key of a first tile, and a difference of two infinities is none.
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)


@triton.jit(do_not_specialize=["segment", "window"])
def dynadapt_attention_forward(
    qkv,
    mem_k,
    mem_v,
    mem_len,
    slots,
    cos,
    sin,
    scale,
    softcap,
    window,
    out,
    lse,
    segment,
    mem_slot,
    mem_row,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    wait_for_previous()
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    stream, head = tl.program_id(0) // HQ, tl.program_id(0) % HQ
    kv_head = head // (HQ // HKV)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM  # the longest rows first
    slot, length = stream_of(slots, mem_len, stream)
    x = qkv + (stream * segment).to(tl.int64) * WIDTH
    k, v = x + (HQ + kv_head) * D, x + (HQ + HKV + kv_head) * D
    rows = first + tl.arange(0, BM)
    q1, q2 = halves(x + head * D, WIDTH, rows, rows < segment, cos, sin, length, D, HP)

    acc = tl.zeros([BM, DP], tl.float32)
    m = tl.full([BM], LOWEST, tl.float32)
    l = tl.zeros([BM], tl.float32)
    memory_tiles = tl.cdiv(length, BN)
    if mem_k is not None:
        mem_k += slot * mem_slot + kv_head * D
        mem_v += slot * mem_slot + kv_head * D
    begin = first_tile(memory_tiles, length, first, window, BN)
    for n in range(begin, memory_tiles + tl.cdiv(tl.minimum(first + BM, segment), BN)):
        keys, exist, kn, vn, stride, position, last = tile_of(
            n, memory_tiles, mem_k, mem_v, mem_row, k, v, length, segment, rows, WIDTH, BN
        )
        k1, k2 = halves(kn, stride, keys, exist, cos, sin, position, D, HP)
        s = scores(q1, q2, k1, k2, scale, softcap, keys, position, last, length + rows, window)  # [BM, BN]
        highest = tl.maximum(m, tl.max(s, 1))
        p, fade = tl.exp2(s - highest[:, None]), tl.exp2(m - highest)
        values = rows_of(vn, stride, keys, exist, D, DP)
        acc = dot(p.to(values.dtype), values, acc * fade[:, None])
        l = l * fade + tl.sum(p, 1)
        m = highest

    c = tl.arange(0, DP)
    at = out + (stream * segment).to(tl.int64) * (HQ * D) + head * D + rows[:, None] * (HQ * D) + c[None, :]
    tl.store(at, acc / l[:, None], mask=(rows < segment)[:, None] & (c < D)[None, :])
    tl.store(lse + tl.program_id(0).to(tl.int64) * segment + rows, m * LN2 + tl.log(l), mask=rows < segment)


VARIANTS: list[Variant] = variants("forward", dynadapt_attention_forward)
