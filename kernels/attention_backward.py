"""The backward kernels of attention: one for dq, one for dk and dv.

P is recomputed from lse, over the keys and values that attention_keys.py puts side by side once more. One launch computes dq over the whole
window; the rotated queries, lse and delta = rowsum(dout out), which it has in hand, go to scratch. A second one computes dk and dv of the
segment's keys, each program walking the queries behind its keys for all query heads of its group, in a fixed order, with nothing left to
rotate. Where few streams leave multiprocessors idle, each query head of a group has programs of its own, which leave float32 sums in scratch;
the last one of a block of keys to arrive adds them up, in the heads' order, as the one program does: the same bits. (Hopper has the registers
for that second sum where heads are of at most 64; else nothing is split.) Memory gets no gradient, so its keys cost three products and not
five. Rotation is undone on the accumulators. The two are not fused: the programs of one would wait for the other's.

A product that adds onto what the last step left is on its way while the next step's scores are set to zero, and then the compiler lets every
wgmma wait for the one before it: dq is added up apart from its products, as is the sum of values forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_parts import (
    LOG2E,
    SMALL,
    apart,
    capped,
    crosses,
    factor,
    halves,
    joined,
    rows_of,
    scores,
    stream_of,
    variant_of,
    variants,
    walk_of,
)
from .common import Variant, dot, wait_for_previous


@triton.jit
def _keep_halves(base, rows, valid, x1, x2, HP: tl.constexpr):
    """Rotated rows in scratch: both halves padded with zeros, [rows, 2 HP]."""
    at = base + rows[:, None] * (2 * HP) + tl.arange(0, HP)[None, :]
    tl.store(at, x1, mask=valid[:, None])
    tl.store(at + HP, x2, mask=valid[:, None])


@triton.jit
def _put_rotated_back(base, row_stride, rows, valid, g1, g2, cos, sin, position, D: tl.constexpr, HP: tl.constexpr):
    """Gradients of rotated halves, rotated back and stored."""
    H: tl.constexpr = (D + 1) // 2
    c = tl.arange(0, HP)
    if cos is not None:
        place = (position + rows)[:, None] * H + c[None, :]
        cs = tl.load(cos + place, mask=valid[:, None] & (c < H)[None, :], other=0)
        sn = tl.load(sin + place, mask=valid[:, None] & (c < H)[None, :], other=0)
        g1, g2 = g1 * cs + g2 * sn, g2 * cs - g1 * sn
    at = base + rows[:, None] * row_stride + c[None, :]
    tl.store(at, g1, mask=valid[:, None] & (c < H)[None, :])
    tl.store(at + H, g2, mask=valid[:, None] & (c < D - H)[None, :])


@triton.jit
def _cap_slope(s, softcap):
    """The derivative of capped scores, from what ``capped`` gave; 1 where a score is masked."""
    t = tl.where(s == float("-inf"), 0.0, s) / (softcap * LOG2E)
    return 1.0 - t * t


@triton.jit(do_not_specialize=["segment", "memory", "window"])
def dynadapt_attention_dq(
    dout,
    qkv,
    out,
    lse,
    mem_len,
    slots,
    cos,
    sin,
    scale,
    softcap,
    window,
    keys,
    values,
    dqkv,
    statistics,
    rotated_q,
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
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM
    _, length = stream_of(slots, mem_len, stream)
    row0 = (stream * segment).to(tl.int64)
    x = qkv + row0 * WIDTH
    rows = first + tl.arange(0, BM)
    valid = rows < segment

    do = rows_of(dout + row0 * (HQ * D) + head * D, HQ * D, rows, valid, D, DP)
    o = rows_of(out + row0 * (HQ * D) + head * D, HQ * D, rows, valid, D, DP)
    drop = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    statistic = tl.program_id(0).to(tl.int64) * segment + rows
    lse2 = tl.load(lse + statistic, mask=valid, other=float("inf")) * LOG2E  # rows that do not exist: P = 0
    tl.store(statistics + 2 * statistic, -lse2, mask=valid)
    tl.store(statistics + 2 * statistic + 1, drop, mask=valid)
    q1, q2 = halves(x + head * D, WIDTH, rows, valid, cos, sin, length, D, HP)
    _keep_halves(rotated_q + tl.program_id(0).to(tl.int64) * segment * (2 * HP), rows, valid, q1, q2, HP)
    q = joined(q1, q2)

    f = factor(scale, softcap)
    dq = tl.zeros([BM, 2 * HP], tl.float32)
    keys, values, begin, end = walk_of(keys, values, stream * HKV + kv_head, length, first, segment, memory, window, HP, DP, BM, BN)
    for n in range(begin, tl.cdiv(end, BN)):
        at = n * BN + tl.arange(0, BN)
        k = rows_of(keys, 2 * HP, at, at < end, 2 * HP, 2 * HP)
        v = rows_of(values, DP, at, at < end, DP, DP)
        s = scores(q, k, scale, softcap, at, length + rows, crosses(n * BN, length + first, window, BM, BN), window)
        p = tl.exp2(s * f - lse2[:, None])  # [BM, BN]
        dp = dot(do, tl.trans(v), tl.zeros([BM, BN], tl.float32))
        ds = p * (dp - drop[:, None])
        if softcap is not None:
            ds *= _cap_slope(s, softcap)
        dq = tl.fma(dq, tl.full([BM, 2 * HP], 1.0, tl.float32), dot(ds.to(k.dtype), k, tl.zeros([BM, 2 * HP], tl.float32)))
    # A row whose last key is its first gives that one probability 1 whatever q and k are: dP - delta is the rounding of two equal sums.
    dq *= tl.where(length + rows == 0, 0.0, scale)[:, None]
    dq1, dq2 = apart(dq)
    _put_rotated_back(dqkv + row0 * WIDTH + head * D, WIDTH, rows, valid, dq1, dq2, cos, sin, length, D, HP)


@triton.jit
def _add_queries(
    dk,
    dv,
    k,
    v,
    keys,
    first,
    head,
    tile,
    stream,
    queries,
    statistics,
    segment,
    length,
    scale,
    softcap,
    window,
    HQ: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """dk / scale [BN, 2 HP] and dv [BN, DP] with what the BM queries from ``tile`` on of one head add; queries: (rotated, dout)."""
    rotated_q, dout = queries
    rows = tile + tl.arange(0, BM)
    exist = rows < segment
    at = (stream * HQ + head).to(tl.int64) * segment
    q = rows_of(rotated_q + at * (2 * HP), 2 * HP, rows, exist, 2 * HP, 2 * HP)
    do = rows_of(dout + (stream * segment).to(tl.int64) * (HQ * D) + head * D, HQ * D, rows, exist, D, DP)
    # Both in one array: each alone would be read once by every thread that needs it, 4 bytes at a time.
    minus_lse2, drop = tl.split(tl.load(statistics + 2 * (at + tl.minimum(rows, segment - 1))[:, None] + tl.arange(0, 2)[None, :]))
    # Transposed scores [BN, BM]: the products below need no other transpose.
    s = capped(dot(k, tl.trans(q), tl.zeros([BN, BM], tl.float32)), scale, softcap)
    masked = k.dtype == tl.float32  # always: branches around float32's products, which are a thousand instructions, copy some of them
    if k.dtype != tl.float32:
        masked = crosses(first, tile, window, BM, BN) | (tile + BM > segment)
    if masked:
        seen = (keys[:, None] <= rows[None, :]) & exist[None, :]
        if window is not None:
            seen &= rows[None, :] - keys[:, None] < window
        s = tl.where(seen, s, float("-inf"))
    p = tl.exp2(tl.fma(s, factor(scale, softcap), minus_lse2[None, :]))  # one rounding, said: split by heads or not gives the same bits
    dv = dot(p.to(do.dtype), do, dv)
    dp = dot(v, tl.trans(do), tl.zeros([BN, BM], tl.float32))
    ds = p * (dp - drop[None, :])
    if softcap is not None:
        ds *= _cap_slope(s, softcap)
    if masked:  # as in dq
        ds = tl.where((length + rows)[None, :] == 0, 0.0, ds)
    return dot(ds.to(q.dtype), q, dk), dv


@triton.jit(do_not_specialize=["segment", "memory", "window"])
def dynadapt_attention_dkv(
    dout,
    qkv,
    mem_len,
    slots,
    cos,
    sin,
    scale,
    softcap,
    window,
    dqkv,
    statistics,
    rotated_q,
    keys,
    shares,
    done,
    segment,
    memory,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BY_HEAD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Grid (key and value heads of all streams, blocks of keys, SPLIT: query heads of a group). BY_HEAD: each query head is summed for itself,
    then the heads in their order. SPLIT: each by a program of its own into shares [S HQ, T, 2 HP + DP], and the last of a block to
    arrive, by the count in ``done``, adds them up."""
    wait_for_previous()
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    GROUP: tl.constexpr = HQ // HKV
    stream, kv_head = tl.program_id(0) // HKV, tl.program_id(0) % HKV
    first = tl.program_id(1) * BN  # the first keys have the most queries
    _, length = stream_of(slots, mem_len, stream)
    row0 = (stream * segment).to(tl.int64)
    rotated = keys + (tl.program_id(0).to(tl.int64) * (memory + segment) + length) * (2 * HP)  # the segment's, behind the memory's
    keys = first + tl.arange(0, BN)
    valid = keys < segment
    k = rows_of(rotated, 2 * HP, keys, valid, 2 * HP, 2 * HP)
    v = rows_of(qkv + row0 * WIDTH + (HQ + HKV + kv_head) * D, WIDTH, keys, valid, D, DP)

    dk, dv = tl.zeros([BN, 2 * HP], tl.float32), tl.zeros([BN, DP], tl.float32)
    end = segment
    if window is not None:
        end = tl.minimum(segment, first + BN + window - 1)
    steps = tl.cdiv(end - first, BM)
    head0, heads = kv_head * GROUP, GROUP
    if SPLIT:
        head0, heads = head0 + tl.program_id(2), 1
    sum_k, sum_v = dk, dv
    for step in range(0, heads * steps):  # one loop over heads and queries: two nested ones cost registers
        if BY_HEAD and not SPLIT:
            if step % steps == 0:
                sum_k, sum_v = sum_k + dk, sum_v + dv
                dk, dv = tl.zeros([BN, 2 * HP], tl.float32), tl.zeros([BN, DP], tl.float32)
        head, tile = head0 + step // steps, first + step % steps * BM
        queries = (rotated_q, dout)
        dk, dv = _add_queries(
            dk,
            dv,
            k,
            v,
            keys,
            first,
            head,
            tile,
            stream,
            queries,
            statistics,
            segment,
            length,
            scale,
            softcap,
            window,
            HQ,
            D,
            HP,
            DP,
            BM,
            BN,
        )
    last = True
    if BY_HEAD and not SPLIT:
        dk, dv = sum_k + dk, sum_v + dv
    if SPLIT:
        WIDE: tl.constexpr = 2 * HP + DP
        at = (stream * HQ + kv_head * GROUP).to(tl.int64) * segment * WIDE + keys[:, None] * WIDE
        at_k, at_v = shares + at + tl.arange(0, 2 * HP)[None, :], shares + at + 2 * HP + tl.arange(0, DP)[None, :]
        own = tl.program_id(2) * segment * WIDE
        tl.store(at_k + own, dk, mask=valid[:, None])
        tl.store(at_v + own, dv, mask=valid[:, None])
        tl.debug_barrier()  # all threads' values are there before the one that counts says so
        counter = done + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        last = tl.atomic_add(counter, 1) == GROUP - 1
        if last:
            tl.store(counter, 0)
            dk, dv = tl.zeros([BN, 2 * HP], tl.float32), tl.zeros([BN, DP], tl.float32)
            for head in range(GROUP):  # from L2, where the others left them
                dk += tl.load(at_k + head * segment * WIDE, mask=valid[:, None], other=0.0, cache_modifier=".cg")
                dv += tl.load(at_v + head * segment * WIDE, mask=valid[:, None], other=0.0, cache_modifier=".cg")
    if last:
        g = dqkv + row0 * WIDTH
        c = tl.arange(0, DP)
        put_v = g + (HQ + HKV + kv_head) * D + keys[:, None] * WIDTH + c[None, :]
        tl.store(put_v, dv, mask=valid[:, None] & (c < D)[None, :])  # first, to free its registers
        dk1, dk2 = apart(dk * scale)
        _put_rotated_back(g + (HQ + kv_head) * D, WIDTH, keys, valid, dk1, dk2, cos, sin, length, D, HP)


_SPLIT = [(*SMALL[0], 90), (64, torch.float32, False, 90)]
VARIANTS: list[Variant] = variants("dq", dynadapt_attention_dq) + variants("dkv", dynadapt_attention_dkv)
VARIANTS += [variant_of("dkv", dynadapt_attention_dkv, *shape, split=True) for shape in _SPLIT]
