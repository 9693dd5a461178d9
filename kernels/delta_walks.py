"""The gated delta rule's walks over the chunks of a stream: the state forward, its gradient back (delta_rule.py has the equations).

A program is a value head of a stream and some of its value columns, which are independent. Its state lies in memory, 16 KB that it alone
reads, because products over a few key columns at a time are what fits registers.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl

from .common import Variant, wait_for_previous
from .delta_parts import block_of, decays, gates, lengths_of, stream_of, times, tokens, variants


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


_BUILDS = variants(
    [
        ("", dynadapt_delta_rule_forward, None, {"writes": None}),
        (", states kept", dynadapt_delta_rule_forward, None, {"out": None}),
        ("", dynadapt_delta_rule_states, None, {}),
    ]
)
# Tiles are chosen for sm_90; sm_80 spills 34 registers of the forward walk.
VARIANTS: list[Variant] = [replace(v, **target) for v in _BUILDS for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=136))]
