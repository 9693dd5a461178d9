"""The gated delta rule, chunk by chunk of 32 tokens: two launches forward, five backward, for a group of streams.

With G the sum of a chunk's g up to a token and D_ij = e^(G_i - G_j) from the diagonal down, S the state ahead of the chunk:

    A = beta D K K' below the diagonal      T = (I + A)^-1      P = scale D Q K' from the diagonal down
    W = T beta (V - e^G K S)                O = P W + scale e^G Q S
    S <- e^G_end S + (e^(G_end - G) K)' W

``inverse``  T of every chunk and value head, all at once: blocks of 16 on the diagonal row by row, the rest of products, exact because what
             is below one block of two vanishes in its square (of four, in its fourth power).
``forward``  walks over the chunks; a program is a value head of a stream and some of its value columns, which are independent. Its
             state lies in memory, 16 KB that it alone reads, because products over a few key columns at a time are what fits registers. Backward lets
             it keep all states and W instead of O.
``states``   walks back, with the gradient dS of the state behind a chunk, column by column as well:
             dW = P' dO + e^(G_end - G) K dS, dR = T' dW, X = -beta e^G dR, dV = beta dR, dS <- e^G_end dS + (scale e^G Q)' dO + K' X
``pairs``    all chunks at once: dA = -dR W', dP = dO W', the gradients of the gates, and what dQ and dK are along Q and K
``backward`` all chunks and some key columns at once, a program a key head with its value heads: dQ and dK (csrc/cpu/kernels/delta_rule.cpp
             has the equations).

Sums of g are float64, because decays of very different strength stand in one chunk and only their differences count; all else is
float32, its products three of TF32, which together are as exact. Streams are taken in groups whose states and writes fit BUDGET bytes of
scratch memory.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl

from ..ops.delta_scratch import BUDGET, CHUNK, groups, rooms_backward, rooms_forward
from .common import Variant, block, launch, scratch, variant, wait_for_previous

DIAGONAL = 16
WARPS, TILES = 4, {"BV": 32, "BK": 32}  # value columns of a program, key columns of a step
PAIRS, BACKWARD = {"BV": 16, "BK": 16}, {"BV": 32, "BK": 16}  # of the kernels that hold more


@triton.jit
def times(a, b):
    """a b of float32."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def tokens(x, stride, first, t, length, columns, width):
    """[C, D] in float32 of rows t of a stream whose first is ``first``; 0 beyond its length and ``width``."""
    at = x + (first + t).to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=(t < length)[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def block_of(x, stride, first, t, length, at, d, DK: tl.constexpr):
    """[C, BK] of columns ``d`` of a head that begins at ``at``."""
    return tokens(x + at, stride, first, t, length, d, DK)


@triton.jit
def lengths_of(units, s, T, t, length, key_head, HK: tl.constexpr):
    """1 / length of the queries and of the keys [C] of a chunk; 0 of rows that do not count."""
    at = units + (s.to(tl.int64) * T + t) * 2 * HK + key_head
    return tl.load(at, mask=t < length, other=0.0), tl.load(at + HK, mask=t < length, other=0.0)


@triton.jit
def gates(g, beta, first, t, length, head, HV: tl.constexpr):
    """(G float64, G at the end, beta) [C] of a chunk; beyond the length nothing decays and nothing is written."""
    at = (first + t).to(tl.int64) * HV + head
    each = tl.load(g + at, mask=t < length, other=0.0).to(tl.float64)
    return tl.cumsum(each, 0), tl.sum(each, 0), tl.load(beta + at, mask=t < length, other=0.0)


@triton.jit
def decays(G, C: tl.constexpr):
    """D [C, C]."""
    i = tl.arange(0, C)
    return tl.exp(tl.where(i[:, None] >= i[None, :], G[:, None] - G[None, :], float("-inf")).to(tl.float32))


@triton.jit
def stream_of(s, T, slots, lengths):
    """(slot, first row, length) of stream s."""
    length = T
    if lengths is not None:
        length = tl.load(lengths + s)
    return tl.load(slots + s).to(tl.int64), s * T, length


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_inverse(
    qkv,
    g,
    beta,
    slots,
    lengths,
    inverses,
    units,
    eps,
    T,
    chunks,
    stride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
):
    """inverses [S, HV, chunks, C, C] and units [S T, 2, HK]: 1 / length of queries and keys. Grid (chunks, HV, S)."""
    wait_for_previous()
    chunk, head, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, first, length = stream_of(s, T, slots, lengths)
    i = tl.arange(0, C)
    t = chunk * C + i
    key_head = head // (HV // HK)
    raw = tl.zeros([C, C], tl.float32)
    k_square, q_square = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for d0 in range(0, DK, BK):
        d = d0 + tl.arange(0, BK)
        k = block_of(qkv, stride, first, t, length, (HK + key_head) * DK, d, DK)
        q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK)
        raw += times(k, tl.trans(k))
        k_square += tl.sum(k * k, 1)
        q_square += tl.sum(q * q, 1)
    k_unit, q_unit = 1.0 / tl.sqrt(k_square + eps), 1.0 / tl.sqrt(q_square + eps)
    if head % (HV // HK) == 0:
        to = units + (s.to(tl.int64) * T + t) * 2 * HK + key_head
        tl.store(to, q_unit, mask=t < T)
        tl.store(to + HK, k_unit, mask=t < T)
    G, end, rate = gates(g, beta, first, t, length, head, HV)
    a = decays(G, C) * (raw * (rate * k_unit)[:, None] * k_unit[None, :])
    a = tl.where(i[:, None] > i[None, :], a, 0.0)
    same = (i // B)[:, None] == (i // B)[None, :]
    inner = tl.where(same, a, 0.0)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for r in range(1, B):  # row r of every block from those above it
        chosen = i % B == r
        row = tl.sum(tl.where(chosen[:, None], inner, 0.0), 0)
        inverse -= tl.where(chosen[:, None] & same, tl.sum(row[:, None] * inverse, 0)[None, :], 0.0)
    m = times(inverse, a - inner)
    if C > 2 * B:
        inverse += times(times(m, m), inverse)
    inverse -= times(m, inverse)
    at = inverses + ((s.to(tl.int64) * HV + head) * chunks + chunk) * C * C
    tl.store(at + i[:, None] * C + i[None, :], inverse)


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_forward(
    qkv,
    g,
    beta,
    state,
    slots,
    lengths,
    inverses,
    units,
    out,
    states,
    writes,
    scale,
    T,
    chunks,
    entries,
    step,
    stride,
    out_stride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """Grid (blocks of value columns, HV, S). states [S, HV, entries, DK, DV]: where the state is, a step on after each chunk or in place.
    writes [S, HV, chunks, C, DV] or None, and out or None."""
    wait_for_previous()
    head, s = tl.program_id(1), tl.program_id(2)
    slot, first, length = stream_of(s, T, slots, lengths)
    i = tl.arange(0, C)
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    key_head = head // (HV // HK)
    keys = (HK + key_head) * DK
    here = states + (s.to(tl.int64) * HV + head) * entries * DK * DV
    for d0 in range(0, DK, BK):
        d = d0 + tl.arange(0, BK)
        at = d[:, None] * DV + v[None, :]
        inside = (d < DK)[:, None] & (v < DV)[None, :]
        S = tl.zeros([BK, BV], tl.float32)
        if state is not None:
            S += tl.load(state + (slot * HV + head) * DK * DV + at, mask=inside, other=0.0)
        tl.store(here + at, S, mask=inside)
    tl.debug_barrier()
    for chunk in range(0, chunks):
        t = chunk * C + i
        G, end, rate = gates(g, beta, first, t, length, head, HV)
        q_unit, k_unit = lengths_of(units, s, T, t, length, key_head, HK)
        kS, qS, qk = tl.zeros([C, BV], tl.float32), tl.zeros([C, BV], tl.float32), tl.zeros([C, C], tl.float32)
        for d0 in range(0, DK, BK):
            d = d0 + tl.arange(0, BK)
            S = tl.load(here + d[:, None] * DV + v[None, :], mask=(d < DK)[:, None] & (v < DV)[None, :], other=0.0)
            k = block_of(qkv, stride, first, t, length, keys, d, DK)
            kS += times(k, S)
            if out is not None:
                q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK)
                qS += times(q, S)
                qk += times(q, tl.trans(k))
        from_start = tl.exp(G.to(tl.float32))
        value = tokens(qkv + 2 * HK * DK + head * DV, stride, first, t, length, v, DV)
        right = rate[:, None] * (value - (from_start * k_unit)[:, None] * kS)
        at_chunk = (s.to(tl.int64) * HV + head) * chunks + chunk
        W = times(tl.load(inverses + at_chunk * C * C + i[:, None] * C + i[None, :]), right)
        if out is not None:
            P = decays(G, C) * (qk * (scale * q_unit)[:, None] * k_unit[None, :])
            o = times(P, W) + (scale * from_start * q_unit)[:, None] * qS
            to = out + (first + t).to(tl.int64)[:, None] * out_stride + head * DV + v[None, :]
            o = tl.where((t < length)[:, None], o, 0.0)
            tl.store(to, o.to(out.dtype.element_ty), mask=(t < T)[:, None] & (v < DV)[None, :])
        if writes is not None:
            tl.store(writes + at_chunk * C * DV + i[:, None] * DV + v[None, :], W, mask=(v < DV)[None, :] & (i >= 0)[:, None])
        weight, whole = k_unit * tl.exp((end - G).to(tl.float32)), tl.exp(end.to(tl.float32))
        tl.debug_barrier()
        for d0 in range(0, DK, BK):
            d = d0 + tl.arange(0, BK)
            at = d[:, None] * DV + v[None, :]
            inside = (d < DK)[:, None] & (v < DV)[None, :]
            k = block_of(qkv, stride, first, t, length, keys, d, DK) * weight[:, None]
            S = whole * tl.load(here + at, mask=inside, other=0.0) + times(tl.trans(k), W)
            tl.store(here + step + at, S, mask=inside)
        tl.debug_barrier()
        here += step


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_states(
    dout,
    qkv,
    g,
    beta,
    slots,
    lengths,
    inverses,
    units,
    dstates,
    dwrites,
    dqkv,
    scale,
    T,
    chunks,
    stride,
    dout_stride,
    dstride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """Grid as ``forward``. dstates [S, HV, chunks + 1, DK, DV]: of the states ahead of the chunks; dwrites [S, HV, chunks, C, DV]: dR; dV
    into dqkv."""
    wait_for_previous()
    head, s = tl.program_id(1), tl.program_id(2)
    slot, first, length = stream_of(s, T, slots, lengths)
    i = tl.arange(0, C)
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    key_head = head // (HV // HK)
    keys = (HK + key_head) * DK
    here = dstates + ((s.to(tl.int64) * HV + head) * (chunks + 1) + chunks) * DK * DV
    for d0 in range(0, DK, BK):
        d = d0 + tl.arange(0, BK)
        at = d[:, None] * DV + v[None, :]
        tl.store(here + at, tl.zeros([BK, BV], tl.float32), mask=(d < DK)[:, None] & (v < DV)[None, :])
    tl.debug_barrier()
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        t = chunk * C + i
        G, end, rate = gates(g, beta, first, t, length, head, HV)
        q_unit, k_unit = lengths_of(units, s, T, t, length, key_head, HK)
        kdS, qk = tl.zeros([C, BV], tl.float32), tl.zeros([C, C], tl.float32)
        for d0 in range(0, DK, BK):
            d = d0 + tl.arange(0, BK)
            dS = tl.load(here + d[:, None] * DV + v[None, :], mask=(d < DK)[:, None] & (v < DV)[None, :], other=0.0)
            k = block_of(qkv, stride, first, t, length, keys, d, DK)
            q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK)
            kdS += times(k, dS)
            qk += times(q, tl.trans(k))
        from_start, whole = tl.exp(G.to(tl.float32)), tl.exp(end.to(tl.float32))
        do = scale * tokens(dout + head * DV, dout_stride, first, t, length, v, DV)
        P = decays(G, C) * (qk * q_unit[:, None] * k_unit[None, :])
        dW = times(tl.trans(P), do) + (tl.exp((end - G).to(tl.float32)) * k_unit)[:, None] * kdS
        at_chunk = (s.to(tl.int64) * HV + head) * chunks + chunk
        inverse = tl.load(inverses + at_chunk * C * C + i[:, None] * C + i[None, :])
        dR = times(tl.trans(inverse), dW)
        tl.store(dwrites + at_chunk * C * DV + i[:, None] * DV + v[None, :], dR, mask=(v < DV)[None, :] & (i >= 0)[:, None])
        dvalue = tl.where((t < length)[:, None], rate[:, None] * dR, 0.0)
        to = dqkv + (first + t).to(tl.int64)[:, None] * dstride + 2 * HK * DK + head * DV + v[None, :]
        tl.store(to, dvalue.to(dqkv.dtype.element_ty), mask=(t < T)[:, None] & (v < DV)[None, :])
        X = (-rate * from_start * k_unit)[:, None] * dR
        do = (from_start * q_unit)[:, None] * do
        for d0 in range(0, DK, BK):
            d = d0 + tl.arange(0, BK)
            at = d[:, None] * DV + v[None, :]
            inside = (d < DK)[:, None] & (v < DV)[None, :]
            k = block_of(qkv, stride, first, t, length, keys, d, DK)
            q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK)
            dS = whole * tl.load(here + at, mask=inside, other=0.0) + times(tl.trans(q), do)
            tl.store(here - DK * DV + at, dS + times(tl.trans(k), X), mask=inside)
        tl.debug_barrier()
        here -= DK * DV


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_pairs(
    dout,
    qkv,
    g,
    beta,
    slots,
    lengths,
    units,
    states,
    writes,
    dstates,
    dwrites,
    pairs,
    along,
    dg,
    dbeta,
    scale,
    T,
    chunks,
    stride,
    dout_stride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """dg and dbeta; pairs [S, HV, chunks, 2, C, C]: what pairs of tokens give to dQ, and to dK by K; along [S, HV, chunks, 2, C]: dQ . Q and
    dK . K. Grid (chunks, HV, S)."""
    wait_for_previous()
    chunk, head, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, first, length = stream_of(s, T, slots, lengths)
    i = tl.arange(0, C)
    t = chunk * C + i
    key_head = head // (HV // HK)
    keys = (HK + key_head) * DK
    G, end, rate = gates(g, beta, first, t, length, head, HV)
    from_start, to_end, whole = tl.exp(G.to(tl.float32)), tl.exp((end - G).to(tl.float32)), tl.exp(end.to(tl.float32))
    q_unit, k_unit = lengths_of(units, s, T, t, length, key_head, HK)
    at_head = s.to(tl.int64) * HV + head
    at_chunk = at_head * chunks + chunk
    S_at = states + (at_head * (chunks + 1) + chunk) * DK * DV
    dS_at = dstates + (at_head * (chunks + 1) + chunk + 1) * DK * DV
    dA, dP = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    q_along, k_along, later = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    drate, kept = tl.zeros([C], tl.float32), tl.zeros([BK], tl.float32)
    for v0 in range(0, DV, BV):
        v = v0 + tl.arange(0, BV)
        kS, qS, kdS = tl.zeros([C, BV], tl.float32), tl.zeros([C, BV], tl.float32), tl.zeros([C, BV], tl.float32)
        for d0 in range(0, DK, BK):
            d = d0 + tl.arange(0, BK)
            at = d[:, None] * DV + v[None, :]
            inside = (d < DK)[:, None] & (v < DV)[None, :]
            S = tl.load(S_at + at, mask=inside, other=0.0)
            dS = tl.load(dS_at + at, mask=inside, other=0.0)
            k = block_of(qkv, stride, first, t, length, keys, d, DK)
            q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK)
            kS += times(k, S)
            qS += times(q, S)
            kdS += times(k, dS)
            kept += tl.sum(dS * S, 1)
        rows, some = at_chunk * C * DV + i[:, None] * DV + v[None, :], (v < DV)[None, :] & (i >= 0)[:, None]
        W = tl.load(writes + rows, mask=some, other=0.0)
        dR = tl.load(dwrites + rows, mask=some, other=0.0)
        do = scale * tokens(dout + head * DV, dout_stride, first, t, length, v, DV)
        value = tokens(qkv + 2 * HK * DK + head * DV, stride, first, t, length, v, DV)
        kS *= (from_start * k_unit)[:, None]
        drate += tl.sum(dR * (value - kS), 1)
        q_along += from_start * q_unit * tl.sum(do * qS, 1)
        k_along -= rate * tl.sum(dR * kS, 1)
        later += to_end * k_unit * tl.sum(W * kdS, 1)
        dA -= times(dR, tl.trans(W))
        dP += times(do, tl.trans(W))
    kk, qk = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for d0 in range(0, DK, BK):
        d = d0 + tl.arange(0, BK)
        k = block_of(qkv, stride, first, t, length, keys, d, DK)
        q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK)
        kk += times(k, tl.trans(k))
        qk += times(q, tl.trans(k))
    D = decays(G, C)
    dP = dP * D
    dA = tl.where(i[:, None] > i[None, :], dA * D, 0.0)
    given = dA * (kk * k_unit[:, None] * k_unit[None, :])
    drate += tl.sum(given, 1)
    given = rate[:, None] * given
    asked = dP * (qk * q_unit[:, None] * k_unit[None, :])
    dG = (q_along + k_along - later).to(tl.float64) + tl.sum(given + asked, 1).to(tl.float64) - tl.sum(given + asked, 0).to(tl.float64)
    at_end = tl.sum(later, 0).to(tl.float64) + (whole * tl.sum(kept, 0)).to(tl.float64)
    dgate = tl.sum(dG, 0) - tl.cumsum(dG, 0) + dG + at_end  # g_t gives to all G from t on
    to = (first + t).to(tl.int64) * HV + head
    tl.store(dg + to, tl.where(t < length, dgate, 0.0).to(tl.float32), mask=t < T)
    tl.store(dbeta + to, tl.where(t < length, drate, 0.0), mask=t < T)
    square = pairs + at_chunk * 2 * C * C + i[:, None] * C + i[None, :]
    dA = rate[:, None] * dA
    tl.store(square, dP)
    tl.store(square + C * C, dA + tl.trans(dA))
    tl.store(along + at_chunk * 2 * C + i, q_along + tl.sum(asked, 1))
    tl.store(along + at_chunk * 2 * C + C + i, k_along + later + tl.sum(asked, 0) + tl.sum(given, 0) + tl.sum(given, 1))


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_backward(
    dout,
    qkv,
    g,
    beta,
    slots,
    lengths,
    units,
    states,
    writes,
    dstates,
    dwrites,
    pairs,
    along,
    dqkv,
    scale,
    T,
    chunks,
    stride,
    dout_stride,
    dstride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """dQ and dK of some columns, into dqkv. Grid (chunks x blocks of key columns, HK, S)."""
    wait_for_previous()
    BLOCKS: tl.constexpr = (DK + BK - 1) // BK
    chunk, key_head, s = tl.program_id(0) // BLOCKS, tl.program_id(1), tl.program_id(2)
    slot, first, length = stream_of(s, T, slots, lengths)
    i, d = tl.arange(0, C), tl.program_id(0) % BLOCKS * BK + tl.arange(0, BK)
    t = chunk * C + i
    q_unit, k_unit = lengths_of(units, s, T, t, length, key_head, HK)
    q = block_of(qkv, stride, first, t, length, key_head * DK, d, DK) * q_unit[:, None]
    k = block_of(qkv, stride, first, t, length, (HK + key_head) * DK, d, DK) * k_unit[:, None]
    dq, dk = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    q_along, k_along = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for head in range(key_head * (HV // HK), (key_head + 1) * (HV // HK)):
        G, end, rate = gates(g, beta, first, t, length, head, HV)
        from_start, to_end = tl.exp(G.to(tl.float32)), tl.exp((end - G).to(tl.float32))
        at_head = s.to(tl.int64) * HV + head
        at_chunk = at_head * chunks + chunk
        for v0 in range(0, DV, BV):
            v = v0 + tl.arange(0, BV)
            at = (at_head * (chunks + 1) + chunk) * DK * DV + d[:, None] * DV + v[None, :]
            inside = (d < DK)[:, None] & (v < DV)[None, :]
            S = tl.load(states + at, mask=inside, other=0.0)
            dS = tl.load(dstates + DK * DV + at, mask=inside, other=0.0)
            rows, some = at_chunk * C * DV + i[:, None] * DV + v[None, :], (v < DV)[None, :] & (i >= 0)[:, None]
            W = tl.load(writes + rows, mask=some, other=0.0) * to_end[:, None]
            X = tl.load(dwrites + rows, mask=some, other=0.0) * (-rate * from_start)[:, None]
            do = tokens(dout + head * DV, dout_stride, first, t, length, v, DV) * (scale * from_start)[:, None]
            dq += times(do, tl.trans(S))
            dk += times(X, tl.trans(S))
            dk += times(W, tl.trans(dS))
        square = pairs + at_chunk * 2 * C * C + i[:, None] * C + i[None, :]
        dP = tl.load(square)
        dq += times(dP, k)
        dk += times(tl.trans(dP), q)
        dk += times(tl.load(square + C * C), k)
        q_along += tl.load(along + at_chunk * 2 * C + i)
        k_along += tl.load(along + at_chunk * 2 * C + C + i)
    to = dqkv + (first + t).to(tl.int64)[:, None] * dstride + key_head * DK + d[None, :]
    live, stored = (t < length)[:, None], (t < T)[:, None] & (d < DK)[None, :]
    # through the division by the length: what is along the row itself is nothing to it
    dq = (dq - q * q_along[:, None]) * q_unit[:, None]
    dk = (dk - k * k_along[:, None]) * k_unit[:, None]
    tl.store(to, tl.where(live, dq, 0.0).to(dqkv.dtype.element_ty), mask=stored)
    tl.store(to + HK * DK, tl.where(live, dk, 0.0).to(dqkv.dtype.element_ty), mask=stored)


def _check(op: str, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv) -> None:
    if hk < 1 or hv % hk or hv < 1:
        raise ValueError(f"{op}: hv is {hv}, accepted is a multiple of hk, {hk}")
    for name, size in (("dk", dk), ("dv", dv)):
        if not 1 <= size <= 256:
            raise ValueError(f"{op}: {name} is {size}, accepted is 1 to 256")
    n, streams = len(qkv), len(slots)
    if qkv.shape[1] != 2 * hk * dk + hv * dv:
        raise ValueError(f"{op}: qkv has shape {list(qkv.shape)}, accepted is [any, {2 * hk * dk + hv * dv}]")
    if not streams or n % streams:
        raise ValueError(f"{op}: slots has {streams} entries for {n} rows, accepted is a divisor of the rows")
    for name, t in (("g", g), ("beta", beta)):
        if t.shape != (n, hv) or not t.is_contiguous():
            raise ValueError(f"{op}: {name} has shape {list(t.shape)}, accepted is contiguous [{n}, {hv}]")
    if state is not None and (state.shape[1:] != (hv, dk, dv) or not state.is_contiguous()):
        raise ValueError(f"{op}: state has shape {list(state.shape)}, accepted is contiguous [any, {hv}, {dk}, {dv}]")
    if lengths is not None and len(lengths) != streams:
        raise ValueError(f"{op}: lengths has {len(lengths)} entries, accepted is one a slot, {streams}")


class _Call:
    """What the launches of one call take, for a group of streams at a time."""

    def __init__(self, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, rooms: dict):
        """``rooms``: scratch memory by name, numbers a stream (ops/delta_scratch.py)."""
        self.rows, self.streams = dict(qkv=qkv, g=g, beta=beta), dict(slots=slots, lengths=lengths)
        self.T, self.count, self.hv = len(qkv) // len(slots), len(slots), hv
        self.chunks = triton.cdiv(self.T, CHUNK)
        self.sizes = _sizes(hk, hv, dk, dv)
        self.given = dict(state=state, scale=float(scale), eps=float(eps), T=self.T, chunks=self.chunks, stride=qkv.stride(0), **self.sizes)
        self.rooms = rooms

    def groups(self, rows: dict, streams: dict):
        """(arguments, number of streams) of each group; what has rows or streams is cut to the group's."""
        together = groups(self.count, self.rooms, BUDGET)
        most = max(hi - lo for lo, hi in together)
        device = self.rows["qkv"].device
        rooms = {name: scratch(device, f"delta rule {name}", most * size) for name, size in self.rooms.items()}
        for lo, hi in together:
            own = {n: None if t is None else t[lo * self.T : hi * self.T] for n, t in (self.rows | rows).items()}
            own |= {n: None if t is None else t[lo:hi] for n, t in (self.streams | streams).items()}
            yield self.given | rooms | own, hi - lo

    def by_columns(self, streams: int) -> tuple[int, int, int]:
        return triton.cdiv(self.sizes["DV"], self.sizes["BV"]), self.hv, streams


def _sizes(hk: int, hv: int, dk: int, dv: int) -> dict:
    return dict(HK=hk, HV=hv, DK=dk, DV=dv, **_tiles(TILES, dk, dv), C=CHUNK, B=DIAGONAL)


def _tiles(most: dict, dk: int, dv: int) -> dict:
    return {"BK": block(dk, most["BK"]), "BV": block(dv, most["BV"])}


def delta_rule_forward(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, out, final) -> None:
    """out [N, hv dv] and final [S, hv, dk, dv] or None; see ``dynadapt.ops.delta_rule``.

    Raises:
        ValueError: a shape or stride that does not fit, or heads of more than 256.
    """
    _check("delta_rule_forward", qkv, g, beta, state, slots, lengths, hk, hv, dk, dv)
    rooms = rooms_forward(len(qkv) // len(slots), hk, hv, dk, dv, final is not None)
    call = _Call(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, rooms)
    for given, streams in call.groups(dict(out=out), {} if final is None else dict(states=final)):
        if call.chunks:
            launch(dynadapt_delta_rule_inverse, (call.chunks, hv, streams), given, num_warps=WARPS, num_stages=1)
        given |= dict(writes=None, out_stride=out.stride(0), entries=1, step=0)
        launch(dynadapt_delta_rule_forward, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)


def delta_rule_backward(dout, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, dqkv, dg, dbeta) -> None:
    """dqkv like qkv, dg, dbeta float32 [N, hv]; see ``dynadapt.ops.delta_rule``.

    Raises:
        ValueError: as ``delta_rule_forward``.
    """
    _check("delta_rule_backward", qkv, g, beta, state, slots, lengths, hk, hv, dk, dv)
    rooms = rooms_backward(len(qkv) // len(slots), hk, hv, dk, dv)
    call = _Call(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, rooms)
    chunks = call.chunks
    if not chunks:
        return
    for given, streams in call.groups(dict(dout=dout, dqkv=dqkv, dg=dg, dbeta=dbeta), {}):
        given |= dict(out=None, out_stride=0, entries=chunks + 1, step=dk * dv, dout_stride=dout.stride(0), dstride=dqkv.stride(0))
        of_chunks = chunks, hv, streams
        launch(dynadapt_delta_rule_inverse, of_chunks, given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_forward, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_states, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_pairs, of_chunks, given | _tiles(PAIRS, dk, dv), num_warps=WARPS, num_stages=1)
        tiles = _tiles(BACKWARD, dk, dv)
        grid = chunks * triton.cdiv(dk, tiles["BK"]), hk, streams
        launch(dynadapt_delta_rule_backward, grid, given | tiles, num_warps=WARPS, num_stages=1)


def reason(op: str) -> str:
    return "Triton, chunks of 32 tokens in float32, the triangular inverse of all at once"


_TYPES = dict.fromkeys(("qkv", "out", "dout", "dqkv"), "*bf16") | {"slots": "*i32", "lengths": "*i32", "scale": "fp32", "eps": "fp32"}
_TYPES |= dict.fromkeys(("g", "beta", "state", "dg", "dbeta", "inverses", "units", "states", "writes"), "*fp32")
_TYPES |= dict.fromkeys(("dstates", "dwrites", "pairs", "along"), "*fp32")


def _variants(hk: int, hv: int, d: int, dtype: str):
    sizes = _sizes(hk, hv, d, d)
    for suffix, kernel, other in (
        ("", dynadapt_delta_rule_inverse, {}),
        ("", dynadapt_delta_rule_forward, {"writes": None}),
        (", states kept", dynadapt_delta_rule_forward, {"out": None}),
        ("", dynadapt_delta_rule_states, {}),
        ("", dynadapt_delta_rule_pairs, _tiles(PAIRS, d, d)),
        ("", dynadapt_delta_rule_backward, _tiles(BACKWARD, d, d)),
    ):
        constexprs = {name: value for name, value in sizes.items() if name in kernel.arg_names} | other
        loose = ("entries", "step")
        yield variant(
            f"{hk}, {hv} x {d}, {dtype}{suffix}", kernel, _TYPES, constexprs, dtype=dtype, num_stages=1, num_warps=WARPS, loose=loose
        )


_BUILDS = [*_variants(16, 32, 128, "bf16"), *_variants(16, 16, 64, "fp32")]
# Tiles are chosen for sm_90; sm_80 spills 34 registers of the forward walk.
VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=136)) for v in _BUILDS]
