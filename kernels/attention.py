"""Causal attention over [memory; segment] with rotation on load: one launch forward, two backward.

Forward. A program owns BM queries of one head of one stream. It rotates them once, then walks the stream's memory as far
as it is filled (the fill is read on the device, so a short memory costs what it is long) and the segment up to its
diagonal, with a running maximum and sum (Dao 2023, arXiv 2307.08691). Scores never leave the chip. Keys are stored
before rotation because a memory entry's position changes when the window moves; they are rotated as they arrive, in two
halves: q k^T = q1 k1^T + q2 k2^T, so that no half has to be exchanged between threads. That costs 3 d elementwise
operations a key and program, next to 4 BM d in products; cos and sin come from L2. Memory and segment are one masked loop
that changes its addresses on the way: apart, or with the diagonal apart, they need up to 80 registers more.

Backward. P is recomputed from lse. One launch computes dq over the whole window; the rotated queries and
delta = rowsum(dout out), which it has in hand, go to scratch. A second one computes dk and dv of the segment's keys, each
program walking the queries behind its keys for all query heads of its group, in a fixed order, with nothing left to rotate. Where few
streams leave multiprocessors idle, each query head of a group has programs of its own, which leave float32 sums in scratch; the last
one of a block of keys to arrive adds them up, in the heads' order, as the one program does: the same bits. (Hopper has the registers
for that second sum where heads are of at most 64; else nothing is split.) Memory gets no gradient, so its keys cost three products and not five. Rotation is undone on the accumulators. The
two are not fused: the programs of one would wait for the other's.

With a window, tiles that lie before it are not visited: a program's walk starts at the first key that its first query sees, and
dk and dv end at the last query that sees their last key. A soft-cap is three lines in registers, in each of the three walks.

Traffic: qkv and out once each per block that reads them, almost all from L2; nothing of size T x L is in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import Variant, block, dot, hyperbolic_tangent, launch, scratch, variant, wait_for_previous
from .tiles import generation

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
SMS = 132  # blocks are halved when larger ones would leave multiprocessors without work
# Where a running maximum starts: not at -inf, as a row may see no key of a first tile, and a difference of two infinities is none.
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
MAX_HEAD = 256  # a head lies in the registers of one program


@triton.jit
def _halves(base, row_stride, rows, valid, cos, sin, position, D: tl.constexpr, HP: tl.constexpr):
    """Both halves [B, HP] of rows of length D, rotated to position + rows where cos is given; rows not ``valid`` are 0."""
    H: tl.constexpr = (D + 1) // 2
    c = tl.arange(0, HP)
    at = base + rows[:, None] * row_stride + c[None, :]
    x1 = tl.load(at, mask=valid[:, None] & (c < H)[None, :], other=0)
    x2 = tl.load(at + H, mask=valid[:, None] & (c < D - H)[None, :], other=0)
    if cos is not None:
        place = (position + rows)[:, None] * H + c[None, :]
        cs = tl.load(cos + place, mask=valid[:, None] & (c < H)[None, :], other=0)
        sn = tl.load(sin + place, mask=valid[:, None] & (c < H)[None, :], other=0)
        w1, w2 = x1.to(tl.float32), x2.to(tl.float32)
        x1, x2 = (w1 * cs - w2 * sn).to(x1.dtype), (w2 * cs + w1 * sn).to(x1.dtype)
    return x1, x2


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
def _rows(base, row_stride, rows, valid, D: tl.constexpr, DP: tl.constexpr):
    """Rows [B, DP] of length D; rows not ``valid`` are 0."""
    c = tl.arange(0, DP)
    return tl.load(base + rows[:, None] * row_stride + c[None, :], mask=valid[:, None] & (c < D)[None, :], other=0)


@triton.jit
def _tile(n, memory_tiles, mem_k, mem_v, mem_row, k, v, length, segment, rows, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Tile n of [memory; segment]: its keys [BN] counted in their part, which of them exist, both parts' address, row stride and
    position, and the last key that each row sees [BM]."""
    end, stride, position, last = segment, WIDTH, length, rows
    if mem_k is not None:
        in_memory = n < memory_tiles
        n -= tl.where(in_memory, 0, memory_tiles)
        k, v = tl.where(in_memory, mem_k, k), tl.where(in_memory, mem_v, v)
        end, stride = tl.where(in_memory, length, segment), tl.where(in_memory, mem_row, WIDTH)
        position, last = tl.where(in_memory, 0, length), tl.where(in_memory, length - 1, rows)
    keys = n * BN + tl.arange(0, BN)
    return keys, keys < end, k, v, stride, position, last


@triton.jit
def _first_tile(memory_tiles, length, first, window, BN: tl.constexpr):
    """The tile of [memory; segment] with the first key that query ``first`` sees."""
    begin = 0
    if window is not None:
        oldest = length + first - window + 1  # counted from the memory's start
        begin = tl.where(oldest < length, tl.maximum(oldest, 0) // BN, memory_tiles + tl.maximum(oldest - length, 0) // BN)
    return begin


@triton.jit
def _cap(s, scale, softcap):
    """scale log2(e) s of products of queries and keys, or with a soft-cap that of capped scores."""
    if softcap is None:
        s *= scale * LOG2E
    else:
        s = hyperbolic_tangent(s * (scale / softcap)) * (softcap * LOG2E)
    return s


@triton.jit
def _cap_slope(s, softcap):
    """The derivative of capped scores, from what ``_cap`` gave; 1 where a score is masked."""
    t = tl.where(s == float("-inf"), 0.0, s) / (softcap * LOG2E)
    return 1.0 - t * t


@triton.jit
def _scores(q1, q2, k1, k2, scale, softcap, keys, position, last, place, window):
    """scale log2(e) q k^T [BM, BN], soft-capped, of keys up to each row's last one, and within the window that ends at the row's place [BM];
    ``position``: of the keys' part."""
    s = tl.zeros([q1.shape[0], k1.shape[0]], tl.float32)
    s = _cap(dot(q2, tl.trans(k2), dot(q1, tl.trans(k1), s)), scale, softcap)
    seen = keys[None, :] <= last[:, None]
    if window is not None:
        seen &= place[:, None] - (position + keys)[None, :] < window
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _slope(scale, last):
    """What dS is multiplied with: 0 for rows whose last key is their first, as that one has probability 1 whatever q and k are
    and dP - delta is the rounding of two sums that are equal."""
    return tl.where(last == 0, 0.0, scale)


@triton.jit
def _stream(slots, mem_len, stream):
    slot = tl.load(slots + stream).to(tl.int64)
    length = 0
    if mem_len is not None:
        length = tl.load(mem_len + slot)
    return slot, length


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
    slot, length = _stream(slots, mem_len, stream)
    x = qkv + (stream * segment).to(tl.int64) * WIDTH
    k, v = x + (HQ + kv_head) * D, x + (HQ + HKV + kv_head) * D
    rows = first + tl.arange(0, BM)
    q1, q2 = _halves(x + head * D, WIDTH, rows, rows < segment, cos, sin, length, D, HP)

    acc = tl.zeros([BM, DP], tl.float32)
    m = tl.full([BM], LOWEST, tl.float32)
    l = tl.zeros([BM], tl.float32)
    memory_tiles = tl.cdiv(length, BN)
    if mem_k is not None:
        mem_k += slot * mem_slot + kv_head * D
        mem_v += slot * mem_slot + kv_head * D
    begin = _first_tile(memory_tiles, length, first, window, BN)
    for n in range(begin, memory_tiles + tl.cdiv(tl.minimum(first + BM, segment), BN)):
        keys, exist, kn, vn, stride, position, last = _tile(n, memory_tiles, mem_k, mem_v, mem_row, k, v, length, segment, rows, WIDTH, BN)
        k1, k2 = _halves(kn, stride, keys, exist, cos, sin, position, D, HP)
        s = _scores(q1, q2, k1, k2, scale, softcap, keys, position, last, length + rows, window)  # [BM, BN]
        highest = tl.maximum(m, tl.max(s, 1))
        p, fade = tl.exp2(s - highest[:, None]), tl.exp2(m - highest)
        values = _rows(vn, stride, keys, exist, D, DP)
        acc = dot(p.to(values.dtype), values, acc * fade[:, None])
        l = l * fade + tl.sum(p, 1)
        m = highest

    c = tl.arange(0, DP)
    at = out + (stream * segment).to(tl.int64) * (HQ * D) + head * D + rows[:, None] * (HQ * D) + c[None, :]
    tl.store(at, acc / l[:, None], mask=(rows < segment)[:, None] & (c < D)[None, :])
    tl.store(lse + tl.program_id(0).to(tl.int64) * segment + rows, m * LN2 + tl.log(l), mask=rows < segment)


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
    slot, length = _stream(slots, mem_len, stream)
    row0 = (stream * segment).to(tl.int64)
    x = qkv + row0 * WIDTH
    k, v = x + (HQ + kv_head) * D, x + (HQ + HKV + kv_head) * D
    rows = first + tl.arange(0, BM)
    valid = rows < segment

    do = _rows(dout + row0 * (HQ * D) + head * D, HQ * D, rows, valid, D, DP)
    o = _rows(out + row0 * (HQ * D) + head * D, HQ * D, rows, valid, D, DP)
    drop = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    statistic = tl.program_id(0).to(tl.int64) * segment + rows
    tl.store(delta + statistic, drop, mask=valid)
    lse2 = tl.load(lse + statistic, mask=valid, other=float("inf")) * LOG2E  # rows that do not exist: P = 0
    q1, q2 = _halves(x + head * D, WIDTH, rows, valid, cos, sin, length, D, HP)
    _keep_halves(rotated_q + tl.program_id(0).to(tl.int64) * segment * (2 * HP), rows, valid, q1, q2, HP)
    if head % (HQ // HKV) == 0:
        k1, k2 = _halves(k, WIDTH, rows, valid, cos, sin, length, D, HP)
        _keep_halves(rotated_k + (stream * HKV + kv_head).to(tl.int64) * segment * (2 * HP), rows, valid, k1, k2, HP)

    slope = _slope(scale, length + rows)
    dq1, dq2 = tl.zeros([BM, HP], tl.float32), tl.zeros([BM, HP], tl.float32)
    memory_tiles = tl.cdiv(length, BN)
    if mem_k is not None:
        mem_k += slot * mem_slot + kv_head * D
        mem_v += slot * mem_slot + kv_head * D
    begin = _first_tile(memory_tiles, length, first, window, BN)
    for n in range(begin, memory_tiles + tl.cdiv(tl.minimum(first + BM, segment), BN)):
        keys, exist, kn, vn, stride, position, last = _tile(n, memory_tiles, mem_k, mem_v, mem_row, k, v, length, segment, rows, WIDTH, BN)
        k1, k2 = _halves(kn, stride, keys, exist, cos, sin, position, D, HP)
        values = _rows(vn, stride, keys, exist, D, DP)
        s = _scores(q1, q2, k1, k2, scale, softcap, keys, position, last, length + rows, window)
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
    q = _rows(rotated_q + at * (2 * HP), 2 * HP, rows, exist, 2 * HP, 2 * HP)
    do = _rows(dout + (stream * segment).to(tl.int64) * (HQ * D) + head * D, HQ * D, rows, exist, D, DP)
    lse2 = tl.load(lse + at + rows, mask=exist, other=float("inf")) * LOG2E  # rows that do not exist: P = 0
    drop = tl.load(delta + at + rows, mask=exist, other=0)
    # Transposed scores [BN, BM]: the products below need no other transpose.
    s = _cap(dot(k, tl.trans(q), tl.zeros([BN, BM], tl.float32)), scale, softcap)
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
    slot, length = _stream(slots, mem_len, stream)
    row0 = (stream * segment).to(tl.int64)
    keys = first + tl.arange(0, BN)
    valid = keys < segment
    k = _rows(rotated_k + tl.program_id(0).to(tl.int64) * segment * (2 * HP), 2 * HP, keys, valid, 2 * HP, 2 * HP)
    v = _rows(qkv + row0 * WIDTH + (HQ + HKV + kv_head) * D, WIDTH, keys, valid, D, DP)

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


def _blocks(kernel: str, dtype: torch.dtype, d: int, large: bool, arch: int) -> tuple[dict, dict]:
    """(block sizes, launch options) by what leaves no register spilled.

    bfloat16: each warp owns 16 rows of the accumulators, which wgmma wants, 8 warps where there is work for all SMs. What is
    walked over comes in 64s, in 32s where accumulators have 128 columns; it does not depend on ``large``, so that a stream's
    results do not depend on how many others there are. float32 has no tensor cores here and keeps whole rows in registers.
    Heads of more than 128 have two accumulators each that wide in backward, over 8 warps with 16 rows walked at a time.
    On sm_80 (``arch`` 80) a product's operands are registers too, so its blocks are smaller, those of dq most.
    """
    narrow = d <= 64
    own, walked = (128 if large and arch != 80 else 64), (64 if narrow else 32)
    if arch == 80 and kernel == "dq":
        own, walked = (64 if narrow else 32), 32
    wide = d > 128 and kernel != "forward" and dtype != torch.float32
    if wide:
        own, walked = 64, 16
    if dtype == torch.float32:
        own, walked = (32 if narrow else 16), 16
    sizes = {"BM": walked, "BN": own} if kernel == "dkv" else {"BM": own, "BN": walked}
    return sizes, {"num_warps": 8 if own == 128 or wide else 4, "num_stages": 2}


def _by_head(hq: int, hkv: int, d: int, arch: int) -> bool:
    """Whether dk and dv are summed head by head of a group, and so may be split over its heads. Two sums of more than 64 columns each
    would not fit in registers beside those of one head, nor do smaller ones where a product's operands are registers (sm_80) or
    accumulators come from tensor memory (sm_100)."""
    return hq > hkv and d <= 64 and arch == 90


def _geometry(hq, hkv, d):
    return {"HQ": hq, "HKV": hkv, "D": d, "HP": block((d + 1) // 2, MAX_HEAD), "DP": block(d, MAX_HEAD)}


def _check(op, qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, window, *contiguous):
    if window is not None and window < 2:
        raise ValueError(f"{op}: window is {window}, accepted is None or at least 2")
    if d > MAX_HEAD:
        raise ValueError(f"{op}: d is {d}, accepted is up to {MAX_HEAD}")
    if hq % hkv:
        raise ValueError(f"{op}: hq is {hq}, accepted is a multiple of hkv, {hkv}")
    if qkv.shape[1] != (hq + 2 * hkv) * d:
        raise ValueError(f"{op}: qkv has {qkv.shape[1]} columns, accepted is (hq + 2 hkv) d = {(hq + 2 * hkv) * d}")
    if qkv.shape[0] % len(slots):
        raise ValueError(f"{op}: slots has {len(slots)} entries for {qkv.shape[0]} rows")
    if len({mem_k is None, mem_v is None, mem_len is None}) > 1:
        raise ValueError(f"{op}: mem_k, mem_v, mem_len are only partly given")
    if mem_k is not None and (mem_k.stride() != mem_v.stride() or mem_k.stride(2) != 1):
        raise ValueError(
            f"{op}: mem_k and mem_v have strides {mem_k.stride()} and {mem_v.stride()}, accepted are equal ones with contiguous rows"
        )
    if (cos is None) != (sin is None):
        raise ValueError(f"{op}: cos is given without sin, or sin without cos")
    if cos is not None and d % 2:
        raise ValueError(f"{op}: d is {d}, accepted is an even number where rotation is asked for")
    if not all(t.is_contiguous() for t in (qkv, *contiguous, *(t for t in (cos, sin) if t is not None))):
        raise ValueError(f"{op}: expected contiguous tensors (only mem_k and mem_v may have strides)")


def _family(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap) -> dict:
    """What the launches of a call take, by name."""
    mem_slot, mem_row = (0, 0) if mem_k is None else mem_k.stride()[:2]
    given = dict(qkv=qkv, mem_k=mem_k, mem_v=mem_v, mem_len=mem_len, slots=slots, cos=cos, sin=sin, scale=scale, window=window)
    given["softcap"] = softcap
    return dict(given, segment=qkv.shape[0] // len(slots), mem_slot=mem_slot, mem_row=mem_row, **_geometry(hq, hkv, d))


def _launch(name: str, kernel, heads: int, given: dict, **more) -> None:
    """``heads``: of all streams; a program owns a block of one's queries."""
    qkv, segment = given["qkv"], given["segment"]
    sizes, options = _blocks(name, qkv.dtype, given["D"], heads * triton.cdiv(segment, 128) >= SMS, generation(qkv.device))
    launch(kernel, (heads, triton.cdiv(segment, sizes["BM"])), given, **more, **sizes, **options)


def _launch_dkv(streams: int, given: dict) -> None:
    """A program owns a block of one head's keys, or where these would leave multiprocessors idle, what one of the group's query heads adds
    to them: the same bits."""
    qkv, segment, hq, hkv, d = (given[name] for name in ("qkv", "segment", "HQ", "HKV", "D"))
    arch, heads = generation(qkv.device), streams * hkv
    by_head = _by_head(hq, hkv, d, arch)
    sizes, options = _blocks("dkv", qkv.dtype, d, heads * triton.cdiv(segment, 128) >= SMS, arch)
    blocks, shares, done = triton.cdiv(segment, sizes["BN"]), None, None
    split = by_head and heads * blocks < SMS
    if split:
        shares = scratch(qkv.device, "attention_shares", streams * hq, segment, 2 * given["HP"] + given["DP"])
        done = scratch(qkv.device, "programs done", heads * blocks, dtype=torch.int32)
    grid = (heads, blocks, hq // hkv if split else 1)
    launch(dynadapt_attention_dkv, grid, given, shares=shares, done=done, BY_HEAD=by_head, SPLIT=split, **sizes, **options)


def attention_forward(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, out, lse, window=None, softcap=None) -> None:
    """out [N, hq d] and lse [S, hq, T]; see ``dynadapt.ops.attention``."""
    _check("attention_forward", qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, window, out, lse)
    given = _family(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap)
    _launch("forward", dynadapt_attention_forward, len(slots) * hq, given, out=out, lse=lse)


def attention_backward(
    dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, dqkv, window=None, softcap=None
) -> None:
    """dqkv [N, (hq + 2 hkv) d]; see ``dynadapt.ops.attention``."""
    _check("attention_backward", qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, window, dout, out, lse, dqkv)
    given = _family(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap)
    streams, segment = len(slots), given["segment"]
    given |= dict(dout=dout, out=out, lse=lse, dqkv=dqkv, delta=scratch(qkv.device, "attention_delta", streams * hq, segment))
    for name, heads in (("rotated_q", hq), ("rotated_k", hkv)):
        given[name] = scratch(qkv.device, f"attention_{name}", streams * heads, segment, 2 * given["HP"], dtype=qkv.dtype)
    _launch("dq", dynadapt_attention_dq, streams * hq, given)
    _launch_dkv(streams, given)


def reason(op: str) -> str:
    return "Triton, rotation on load, memory skipped by its fill"


_TYPES = {
    **dict.fromkeys(("dout", "qkv", "out", "mem_k", "mem_v", "dqkv", "rotated_q", "rotated_k"), "*bf16"),
    **dict.fromkeys(("lse", "delta", "cos", "sin", "shares"), "*fp32"),
    **dict.fromkeys(("mem_len", "slots", "done"), "*i32"),
    **dict.fromkeys(("scale", "softcap"), "fp32"),
    "window": "i32",
}


def _variant(kernel, function, d, dtype, large, arch, absent=("window", "softcap"), split=False) -> Variant:
    sizes, options = _blocks(kernel, dtype, d, large, arch)
    if kernel == "dkv":
        sizes |= dict(BY_HEAD=_by_head(32, 8, d, arch), SPLIT=split)
    short = "bf16" if dtype == torch.bfloat16 else "fp32"
    name = f"d {d}, {short}, {sizes['BM']} x {sizes['BN']}" + "".join(f", no {what}" for what in ("mem_k", "cos") if what in absent)
    name += "" if "window" in absent else ", a window"
    name += "" if "softcap" in absent else ", capped"
    name += ", split by heads" if split else ""
    absent = (*absent, *(() if split else ("shares", "done")))
    nothing = {name: None for name in absent if name in function.arg_names}
    constexprs = {**_geometry(32, 8, d), **sizes, **nothing}
    return variant(name, function, _TYPES, constexprs, dtype=short, tensor_core=short == "bf16", archs=(arch,), **options)


_SMALL, _LARGE = [[(d, torch.bfloat16, large) for d in (64, 128)] for large in (False, True)]
_HOPPER = [*_SMALL, *_LARGE, (96, torch.bfloat16, True), (64, torch.float32, False), (128, torch.float32, False)]
_KERNELS = (("forward", dynadapt_attention_forward), ("dq", dynadapt_attention_dq), ("dkv", dynadapt_attention_dkv))
_MEMORY, _ROTATION = ("softcap", "window", "mem_k", "mem_v", "mem_len"), ("cos", "sin")
_SPLIT = [_variant(*_KERNELS[2], *shape, 90, split=True) for shape in (_SMALL[0], _HOPPER[5])]
_GEMMA = (256, torch.bfloat16, True)
VARIANTS = [
    _variant(*kernel, *shape, arch)
    for shapes, arch in ((_HOPPER, 90), (_LARGE, 100), (_SMALL, 80))
    for kernel in _KERNELS
    for shape in shapes
] + [_variant(*kernel, *_SMALL[0], 90, absent=absent) for kernel in _KERNELS for absent in (_MEMORY, _MEMORY + _ROTATION)]
VARIANTS += _SPLIT + [_variant(*kernel, *_GEMMA, 90, absent=absent) for kernel in _KERNELS for absent in (("softcap",), ())]
