"""The forward kernel of attention (attention.py says what is the same in all of them).

A program owns BM queries of one head of one stream. It rotates them once, then walks the stream's keys, memory as far as it is filled (the fill
is read on the device, so a short memory costs what it is long) and the segment up to its diagonal, with a running maximum and sum
(Dao 2023, arXiv 2307.08691). Scores never leave the chip. Keys and values come from attention_keys.py, one array, rotated.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_parts import crosses, factor, halves, joined, rows_of, scores, stream_of, variants, walk_of
from .common import Variant, dot, wait_for_previous

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Where a running maximum starts: not at -inf, as a row may see no key of a first tile, and a difference of two infinities is none.
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)


@triton.jit(do_not_specialize=["segment", "memory", "window"])
def dynadapt_attention_forward(
    qkv,
    mem_len,
    slots,
    cos,
    sin,
    scale,
    softcap,
    window,
    keys,
    values,
    out,
    lse,
    segment,
    memory,
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
    _, length = stream_of(slots, mem_len, stream)
    x = qkv + (stream * segment).to(tl.int64) * WIDTH
    rows = first + tl.arange(0, BM)
    q1, q2 = halves(x + head * D, WIDTH, rows, rows < segment, cos, sin, length, D, HP)
    q = joined(q1, q2)

    acc = tl.zeros([BM, DP], tl.float32)
    m = tl.full([BM], LOWEST, tl.float32)
    l = tl.zeros([BM], tl.float32)
    keys, values, begin, end = walk_of(keys, values, stream * HKV + kv_head, length, first, segment, memory, window, HP, DP, BM, BN)
    f = factor(scale, softcap)
    for n in range(begin, tl.cdiv(end, BN)):
        at = n * BN + tl.arange(0, BN)
        k = rows_of(keys, 2 * HP, at, at < end, 2 * HP, 2 * HP)
        masked = crosses(n * BN, length + first, window, BM, BN)
        s = scores(q, k, scale, softcap, at, length + rows, masked, window)  # [BM, BN]
        highest = tl.maximum(m, tl.max(s, 1) * f)
        p, fade = tl.exp2(s * f - highest[:, None]), tl.exp2(m - highest)
        v = rows_of(values, DP, at, at < end, DP, DP)
        if DP <= 128:  # apart from the product, see attention_backward.py; wider, the registers of both would not do
            acc = tl.fma(acc, fade[:, None], dot(p.to(v.dtype), v, tl.zeros([BM, DP], tl.float32)))
        else:
            acc = dot(p.to(v.dtype), v, acc * fade[:, None])
        l = l * fade + tl.sum(p, 1)
        m = highest

    c = tl.arange(0, DP)
    at = out + (stream * segment).to(tl.int64) * (HQ * D) + head * D + rows[:, None] * (HQ * D) + c[None, :]
    tl.store(at, acc / l[:, None], mask=(rows < segment)[:, None] & (c < D)[None, :])
    tl.store(lse + tl.program_id(0).to(tl.int64) * segment + rows, m * LN2 + tl.log(l), mask=rows < segment)


VARIANTS: list[Variant] = variants("forward", dynadapt_attention_forward)
