"""The backward kernels of attention: one for dq, one for dk and dv.

P is recomputed from lse. One launch computes dq over the whole window; the rotated queries and delta = rowsum(dout out), which it has in
hand, go to scratch. A second one computes dk and dv of the segment's keys, each program walking the queries behind its keys for all query
heads of its group, in a fixed order, with nothing left to rotate. Where few streams leave multiprocessors idle, each query head of a group
has programs of its own, which leave float32 sums in scratch; the last one of a block of keys to arrive adds them up, in the heads' order,
as the one program does: the same bits. (Hopper has the registers for that second sum where heads are of at most 64; else nothing is split.)
Memory gets no gradient, so its keys cost three products and not five. Rotation is undone on the accumulators. The two are not fused: the
programs of one would wait for the other's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_parts import LOG2E, SMALL, capped, first_tile, halves, rows_of, scores, stream_of, tile_of, variant_of, variants
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


@triton.jit
def _slope(scale, last):
    """What dS is multiplied with: 0 for rows whose last key is their first, as that one has probability 1 whatever q and k are
    and dP - delta is the rounding of two sums that are equal."""
    return tl.where(last == 0, 0.0, scale)


@triton.jit(do_not_specialize=["segment", "window"])
def dynadapt_attention_dq(
    dout,
    qkv,
    out,
    lse,
    mem_k,
    mem_v,
    mem_len,
    slots,
    cos,
    sin,
    scale,
    softcap,
    window,
    dqkv,
    delta,
    rotated_q,
    rotated_k,
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
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BM
    slot, length = stream_of(slots, mem_len, stream)
    row0 = (stream * segment).to(tl.int64)
    x = qkv + row0 * WIDTH
    k, v = x + (HQ + kv_head) * D, x + (HQ + HKV + kv_head) * D
    rows = first + tl.arange(0, BM)
    valid = rows < segment

    do = rows_of(dout + row0 * (HQ * D) + head * D, HQ * D, rows, valid, D, DP)
    o = rows_of(out + row0 * (HQ * D) + head * D, HQ * D, rows, valid, D, DP)
    drop = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    statistic = tl.program_id(0).to(tl.int64) * segment + rows
    tl.store(delta + statistic, drop, mask=valid)
    lse2 = tl.load(lse + statistic, mask=valid, other=float("inf")) * LOG2E  # rows that do not exist: P = 0
    q1, q2 = halves(x + head * D, WIDTH, rows, valid, cos, sin, length, D, HP)
    _keep_halves(rotated_q + tl.program_id(0).to(tl.int64) * segment * (2 * HP), rows, valid, q1, q2, HP)
    if head % (HQ // HKV) == 0:
        k1, k2 = halves(k, WIDTH, rows, valid, cos, sin, length, D, HP)
        _keep_halves(rotated_k + (stream * HKV + kv_head).to(tl.int64) * segment * (2 * HP), rows, valid, k1, k2, HP)

    slope = _slope(scale, length + rows)
    dq1, dq2 = tl.zeros([BM, HP], tl.float32), tl.zeros([BM, HP], tl.float32)
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
        values = rows_of(vn, stride, keys, exist, D, DP)
        s = scores(q1, q2, k1, k2, scale, softcap, keys, position, last, length + rows, window)
        p = tl.exp2(s - lse2[:, None])  # [BM, BN]
        dp = dot(do, tl.trans(values), tl.zeros([BM, BN], tl.float32))
        ds = p * (dp - drop[:, None]) * slope[:, None]
        if softcap is not None:
            ds *= _cap_slope(s, softcap)
        ds = ds.to(k1.dtype)
        dq1, dq2 = dot(ds, k1, dq1), dot(ds, k2, dq2)
    _put_rotated_back(dqkv + row0 * WIDTH + head * D, WIDTH, rows, valid, dq1, dq2, cos, sin, length, D, HP)


@triton.jit
def _add_queries(
    dk,
    dv,
    k,
    v,
    keys,
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
    """dk [BN, 2 HP] and dv [BN, DP] with what the BM queries from ``tile`` on of one head add; queries: (rotated, dout),
    statistics: (lse, delta)."""
    rotated_q, dout = queries
    lse, delta = statistics
    rows = tile + tl.arange(0, BM)
    exist = rows < segment
    at = (stream * HQ + head).to(tl.int64) * segment
    q = rows_of(rotated_q + at * (2 * HP), 2 * HP, rows, exist, 2 * HP, 2 * HP)
    do = rows_of(dout + (stream * segment).to(tl.int64) * (HQ * D) + head * D, HQ * D, rows, exist, D, DP)
    lse2 = tl.load(lse + at + rows, mask=exist, other=float("inf")) * LOG2E  # rows that do not exist: P = 0
    drop = tl.load(delta + at + rows, mask=exist, other=0)
    # Transposed scores [BN, BM]: the products below need no other transpose.
    s = capped(dot(k, tl.trans(q), tl.zeros([BN, BM], tl.float32)), scale, softcap)
    seen = keys[:, None] <= rows[None, :]
    if window is not None:
        seen &= rows[None, :] - keys[:, None] < window
    p = tl.exp2(tl.where(seen, s, float("-inf")) - lse2[None, :])
    dv = dot(p.to(do.dtype), do, dv)
    dp = dot(v, tl.trans(do), tl.zeros([BN, BM], tl.float32))
    ds = p * (dp - drop[None, :]) * _slope(scale, length + rows)[None, :]
    if softcap is not None:
        ds *= _cap_slope(s, softcap)
    return dot(ds.to(q.dtype), q, dk), dv


@triton.jit(do_not_specialize=["segment", "window"])
def dynadapt_attention_dkv(
    dout,
    qkv,
    lse,
    mem_len,
    slots,
    cos,
    sin,
    scale,
    softcap,
    window,
    dqkv,
    delta,
    rotated_q,
    rotated_k,
    shares,
    done,
    segment,
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
    slot, length = stream_of(slots, mem_len, stream)
    row0 = (stream * segment).to(tl.int64)
    keys = first + tl.arange(0, BN)
    valid = keys < segment
    k = rows_of(rotated_k + tl.program_id(0).to(tl.int64) * segment * (2 * HP), 2 * HP, keys, valid, 2 * HP, 2 * HP)
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
            begins = step % steps == 0
            sum_k, sum_v = tl.where(begins, sum_k + dk, sum_k), tl.where(begins, sum_v + dv, sum_v)
            dk, dv = tl.where(begins, 0.0, dk), tl.where(begins, 0.0, dv)
        head, tile = head0 + step // steps, first + step % steps * BM
        queries, statistics = (rotated_q, dout), (lse, delta)
        dk, dv = _add_queries(
            dk, dv, k, v, keys, head, tile, stream, queries, statistics, segment, length, scale, softcap, window, HQ, D, HP, DP, BM, BN
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
        dk1, dk2 = tl.split(tl.permute(tl.reshape(dk, [BN, 2, HP]), (0, 2, 1)))
        _put_rotated_back(g + (HQ + kv_head) * D, WIDTH, keys, valid, dk1, dk2, cos, sin, length, D, HP)


_SPLIT = [(*SMALL[0], 90), (64, torch.float32, False, 90)]
VARIANTS: list[Variant] = variants("dq", dynadapt_attention_dq) + variants("dkv", dynadapt_attention_dkv)
VARIANTS += [variant_of("dkv", dynadapt_attention_dkv, *shape, split=True) for shape in _SPLIT]
