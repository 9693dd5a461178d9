"""What of the gated delta rule is done for all chunks at once: each one's triangular inverse, and the gradients that wait for no other chunk
(delta_rule.py has the equations)."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import Variant, wait_for_previous
from .delta_parts import block_of, decays, gates, lengths_of, stream_of, times, tokens, variants

PAIRS, BACKWARD = {"BV": 16, "BK": 16}, {"BV": 32, "BK": 16}  # largest tiles of the kernels that hold more


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


VARIANTS: list[Variant] = list(
    variants(
        [
            ("", dynadapt_delta_rule_inverse, None, {}),
            ("", dynadapt_delta_rule_pairs, PAIRS, {}),
            ("", dynadapt_delta_rule_backward, BACKWARD, {}),
        ]
    )
)
