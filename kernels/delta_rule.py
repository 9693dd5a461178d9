"""The gated delta rule, chunk by chunk of 64 tokens: two launches forward, four backward, for a group of streams.

With G the sum of a chunk's g up to a token and D_ij = e^(G_i - G_j) from the diagonal down, S the state ahead of the chunk:

    A = beta D K K' below the diagonal      T = (I + A)^-1      P = scale D Q K' from the diagonal down
    W = T beta (V - e^G K S)                O = P W + scale e^G Q S
    S <- e^G_end S + (e^(G_end - G) K)' W

``inverse``  T of every chunk and value head, all at once: blocks of 16 on the diagonal row by row, the rest of products, exact because what
             is below four blocks vanishes in its fourth power.
``forward``  walks over the chunks; a program is a value head of a stream and some of its value columns, which are independent. Its
             state stays in registers. Backward lets it keep states and W instead of O.
``states``   walks back, with the gradient dS of the state behind a chunk, column by column as well:
             dW = P' dO + e^(G_end - G) K dS, dR = T' dW, X = -beta e^G dR, dV = beta dR, dS <- e^G_end dS + (scale e^G Q)' dO + K' X
``backward`` all chunks at once, a program a key head with its value heads: dA = -dR W', dP = dO W', and from them and the states the
             gradients of queries, keys and gates (csrc/cpu/kernels/delta_rule.cpp has the equations).

Sums of g are float64, because decays of very different strength stand in one chunk and only their differences count; all else is
float32, its products three of TF32, which together are as exact. Streams are taken in groups whose states and writes fit BUDGET bytes of
scratch memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import Variant, block, launch, scratch, variant

CHUNK, DIAGONAL = 64, 16
BUDGET = 256 << 20  # bytes of scratch memory; a single stream may take more
COLUMNS, WARPS = 32, 4  # value columns of a program
BACKWARD_WARPS = 8


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
def unit(x, eps):
    """Rows divided by their lengths, and 1 / length."""
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) + eps)
    return x * inverse[:, None], inverse


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
    eps,
    T,
    chunks,
    stride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DKP: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
):
    """inverses [S, chunks, HV, C, C]. Grid (chunks, HV, S)."""
    chunk, head, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, first, length = stream_of(s, T, slots, lengths)
    i = tl.arange(0, C)
    t = chunk * C + i
    d = tl.arange(0, DKP)
    k, _ = unit(tokens(qkv + (HK + head // (HV // HK)) * DK, stride, first, t, length, d, DK), eps)
    G, _, rate = gates(g, beta, first, t, length, head, HV)
    a = tl.where(i[:, None] > i[None, :], rate[:, None] * decays(G, C) * times(k, tl.trans(k)), 0.0)
    same = (i // B)[:, None] == (i // B)[None, :]
    inner = tl.where(same, a, 0.0)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for r in range(1, B):  # row r of every block from those above it
        chosen = i % B == r
        row = tl.sum(tl.where(chosen[:, None], inner, 0.0), 0)
        inverse -= tl.where(chosen[:, None] & same, tl.sum(row[:, None] * inverse, 0)[None, :], 0.0)
    m = times(inverse, a - inner)
    inverse += times(times(m, m), inverse)
    inverse -= times(m, inverse)
    at = inverses + ((s.to(tl.int64) * chunks + chunk) * HV + head) * C * C
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
    out,
    final,
    states,
    writes,
    scale,
    eps,
    T,
    chunks,
    stride,
    out_stride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DKP: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """Grid (blocks of value columns, HV, S). states [S, chunks, HV, DK, DV], writes [S, chunks, HV, C, DV]: where given."""
    head, s = tl.program_id(1), tl.program_id(2)
    slot, first, length = stream_of(s, T, slots, lengths)
    i, d = tl.arange(0, C), tl.arange(0, DKP)
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    key_head = head // (HV // HK)
    square = d[:, None] * DV + v[None, :]
    inside = (d < DK)[:, None] & (v < DV)[None, :]
    S = tl.zeros([DKP, BV], tl.float32)
    if state is not None:
        S += tl.load(state + (slot * HV + head) * DK * DV + square, mask=inside, other=0.0)
    for chunk in range(0, chunks):
        t = chunk * C + i
        k, _ = unit(tokens(qkv + (HK + key_head) * DK, stride, first, t, length, d, DK), eps)
        G, end, rate = gates(g, beta, first, t, length, head, HV)
        from_start = tl.exp(G.to(tl.float32))
        at = (s.to(tl.int64) * chunks + chunk) * HV + head
        value = tokens(qkv + 2 * HK * DK + head * DV, stride, first, t, length, v, DV)
        lack = value - from_start[:, None] * times(k, S)
        inverse = tl.load(inverses + at * C * C + i[:, None] * C + i[None, :])
        W = times(inverse, rate[:, None] * lack)
        if out is not None:
            q, _ = unit(tokens(qkv + key_head * DK, stride, first, t, length, d, DK), eps)
            P = decays(G, C) * times(q, tl.trans(k))
            o = scale * (times(P, W) + from_start[:, None] * times(q, S))
            to = out + (first + t).to(tl.int64)[:, None] * out_stride + head * DV + v[None, :]
            o = tl.where((t < length)[:, None], o, 0.0)
            tl.store(to, o.to(out.dtype.element_ty), mask=(t < T)[:, None] & (v < DV)[None, :])
        if states is not None:
            tl.store(states + at * DK * DV + square, S, mask=inside)
            tl.store(writes + at * C * DV + i[:, None] * DV + v[None, :], W, mask=(v < DV)[None, :] & (i >= 0)[:, None])
        to_end = tl.exp((end - G).to(tl.float32))
        S = tl.exp(end.to(tl.float32)) * S + times(tl.trans(k * to_end[:, None]), W)
    if final is not None:
        tl.store(final + (s.to(tl.int64) * HV + head) * DK * DV + square, S, mask=inside)


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_states(
    dout,
    qkv,
    g,
    beta,
    slots,
    lengths,
    inverses,
    dstates,
    dwrites,
    dqkv,
    scale,
    eps,
    T,
    chunks,
    stride,
    dout_stride,
    dstride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DKP: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """Grid as ``forward``. dstates like its states, of those behind the chunks; dwrites [S, chunks, HV, C, DV]: dR; dV into dqkv."""
    head, s = tl.program_id(1), tl.program_id(2)
    _, first, length = stream_of(s, T, slots, lengths)
    i, d = tl.arange(0, C), tl.arange(0, DKP)
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    key_head = head // (HV // HK)
    square = d[:, None] * DV + v[None, :]
    inside = (d < DK)[:, None] & (v < DV)[None, :]
    dS = tl.zeros([DKP, BV], tl.float32)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        t = chunk * C + i
        k, _ = unit(tokens(qkv + (HK + key_head) * DK, stride, first, t, length, d, DK), eps)
        q, _ = unit(tokens(qkv + key_head * DK, stride, first, t, length, d, DK), eps)
        G, end, rate = gates(g, beta, first, t, length, head, HV)
        at = (s.to(tl.int64) * chunks + chunk) * HV + head
        tl.store(dstates + at * DK * DV + square, dS, mask=inside)
        do = scale * tokens(dout + head * DV, dout_stride, first, t, length, v, DV)
        P = decays(G, C) * times(q, tl.trans(k))
        to_end = tl.exp((end - G).to(tl.float32))
        dW = times(tl.trans(P), do) + to_end[:, None] * times(k, dS)
        inverse = tl.load(inverses + at * C * C + i[:, None] * C + i[None, :])
        dR = times(tl.trans(inverse), dW)
        tl.store(dwrites + at * C * DV + i[:, None] * DV + v[None, :], dR, mask=(v < DV)[None, :] & (i >= 0)[:, None])
        dvalue = tl.where((t < length)[:, None], rate[:, None] * dR, 0.0)
        to = dqkv + (first + t).to(tl.int64)[:, None] * dstride + 2 * HK * DK + head * DV + v[None, :]
        tl.store(to, dvalue.to(dqkv.dtype.element_ty), mask=(t < T)[:, None] & (v < DV)[None, :])
        from_start = tl.exp(G.to(tl.float32))
        X = -(rate * from_start)[:, None] * dR
        dS = tl.exp(end.to(tl.float32)) * dS + times(tl.trans(q * from_start[:, None]), do) + times(tl.trans(k), X)


@triton.jit
def through_unit(dy, y, inverse):
    """The gradient of rows before they were divided by their lengths."""
    return (dy - y * tl.sum(y * dy, 1)[:, None]) * inverse[:, None]


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_delta_rule_backward(
    dout,
    qkv,
    g,
    beta,
    slots,
    lengths,
    states,
    writes,
    dstates,
    dwrites,
    dqkv,
    dg,
    dbeta,
    scale,
    eps,
    T,
    chunks,
    stride,
    dout_stride,
    dstride,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DKP: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
):
    """dQ and dK into dqkv, dg and dbeta. Grid (chunks, HK, S)."""
    chunk, key_head, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, first, length = stream_of(s, T, slots, lengths)
    i, d = tl.arange(0, C), tl.arange(0, DKP)
    t = chunk * C + i
    q, q_inverse = unit(tokens(qkv + key_head * DK, stride, first, t, length, d, DK), eps)
    k, k_inverse = unit(tokens(qkv + (HK + key_head) * DK, stride, first, t, length, d, DK), eps)
    dq, dk = tl.zeros([C, DKP], tl.float32), tl.zeros([C, DKP], tl.float32)
    for head in range(key_head * (HV // HK), (key_head + 1) * (HV // HK)):
        G, end, rate = gates(g, beta, first, t, length, head, HV)
        from_start, to_end, whole = tl.exp(G.to(tl.float32)), tl.exp((end - G).to(tl.float32)), tl.exp(end.to(tl.float32))
        at = (s.to(tl.int64) * chunks + chunk) * HV + head
        dA, dP = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
        dG, drate, dend = tl.zeros([C], tl.float64), tl.zeros([C], tl.float32), tl.zeros([C], tl.float64)
        for v0 in range(0, DV, BV):
            v = v0 + tl.arange(0, BV)
            square = d[:, None] * DV + v[None, :]
            inside = (d < DK)[:, None] & (v < DV)[None, :]
            rows, some = i[:, None] * DV + v[None, :], (v < DV)[None, :] & (i >= 0)[:, None]
            S = tl.load(states + at * DK * DV + square, mask=inside, other=0.0)
            dS = tl.load(dstates + at * DK * DV + square, mask=inside, other=0.0)
            W = tl.load(writes + at * C * DV + rows, mask=some, other=0.0)
            dR = tl.load(dwrites + at * C * DV + rows, mask=some, other=0.0)
            do = scale * tokens(dout + head * DV, dout_stride, first, t, length, v, DV)
            value = tokens(qkv + 2 * HK * DK + head * DV, stride, first, t, length, v, DV)
            drate += tl.sum(dR * (value - from_start[:, None] * times(k, S)), 1)
            dA -= times(dR, tl.trans(W))
            dP += times(do, tl.trans(W))
            part = from_start[:, None] * times(do, tl.trans(S))
            dq += part
            dG += tl.sum(part * q, 1).to(tl.float64)
            part = times(-(rate * from_start)[:, None] * dR, tl.trans(S))
            dk += part
            dG += tl.sum(part * k, 1).to(tl.float64)
            part = to_end[:, None] * times(W, tl.trans(dS))
            dk += part
            share = tl.sum(part * k, 1).to(tl.float64)
            dG -= share
            dend += share + tl.where(i == 0, (whole * tl.sum(tl.sum(dS * S, 1), 0)).to(tl.float64), 0.0)
        D = decays(G, C)
        dA = tl.where(i[:, None] > i[None, :], dA * D, 0.0)
        dP = dP * D
        pairs = dA * times(k, tl.trans(k))
        drate += tl.sum(pairs, 1)
        pairs = rate[:, None] * pairs + dP * times(q, tl.trans(k))
        dG += tl.sum(pairs, 1).to(tl.float64) - tl.sum(pairs, 0).to(tl.float64)
        dA = rate[:, None] * dA
        dq += times(dP, k)
        dk += times(tl.trans(dP), q) + times(dA + tl.trans(dA), k)
        # what g_t gives to all G behind it and to the end
        dgate = tl.sum(dG, 0) - tl.cumsum(dG, 0) + dG + tl.sum(dend, 0)
        to = (first + t).to(tl.int64) * HV + head
        tl.store(dg + to, tl.where(t < length, dgate, 0.0).to(tl.float32), mask=t < T)
        tl.store(dbeta + to, tl.where(t < length, drate, 0.0), mask=t < T)
    to = dqkv + (first + t).to(tl.int64)[:, None] * dstride + key_head * DK + d[None, :]
    live, stored = (t < length)[:, None], (t < T)[:, None] & (d < DK)[None, :]
    tl.store(to, tl.where(live, through_unit(dq, q, q_inverse), 0.0).to(dqkv.dtype.element_ty), mask=stored)
    tl.store(to + HK * DK, tl.where(live, through_unit(dk, k, k_inverse), 0.0).to(dqkv.dtype.element_ty), mask=stored)


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


def _groups(streams: int, size: int):
    """(first, end) of groups of streams, each of ``size`` bytes of scratch memory."""
    most = max(1, BUDGET // max(1, size))
    return [(lo, min(lo + most, streams)) for lo in range(0, streams, most)]


class _Call:
    """What the launches of one call take, for a group of streams at a time."""

    def __init__(self, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, backward: bool):
        self.rows = dict(qkv=qkv, g=g, beta=beta)
        self.streams = dict(slots=slots, lengths=lengths)
        self.T, self.count = len(qkv) // len(slots), len(slots)
        self.chunks = triton.cdiv(self.T, CHUNK)
        self.heads = hk, hv
        self.sizes = dict(HK=hk, HV=hv, DK=dk, DV=dv, DKP=block(dk, 256), BV=block(dv, COLUMNS), C=CHUNK, B=DIAGONAL)
        self.given = dict(state=state, scale=float(scale), eps=float(eps), T=self.T, chunks=self.chunks, stride=qkv.stride(0), **self.sizes)
        self.shapes = {"inverses": CHUNK * CHUNK}
        if backward:
            self.shapes |= dict.fromkeys(("states", "dstates"), dk * dv) | dict.fromkeys(("writes", "dwrites"), CHUNK * dv)

    def groups(self, rows: dict, streams: dict):
        """(arguments, number of streams) of each group; what has rows or streams is cut to the group's."""
        per_stream = self.chunks * self.heads[1]
        groups = _groups(self.count, 4 * per_stream * sum(self.shapes.values()))
        most = max(hi - lo for lo, hi in groups)
        device = self.rows["qkv"].device
        rooms = {name: scratch(device, f"delta rule {name}", most * per_stream, size) for name, size in self.shapes.items()}
        for lo, hi in groups:
            own = {n: None if t is None else t[lo * self.T : hi * self.T] for n, t in (self.rows | rows).items()}
            own |= {n: None if t is None else t[lo:hi] for n, t in (self.streams | streams).items()}
            yield self.given | own | rooms, hi - lo

    def by_columns(self, streams: int) -> tuple[int, int, int]:
        return triton.cdiv(self.sizes["DV"], self.sizes["BV"]), self.heads[1], streams


def delta_rule_forward(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, out, final) -> None:
    """out [N, hv dv] and final [S, hv, dk, dv] or None; see ``dynadapt.ops.delta_rule``.

    Raises:
        ValueError: a shape that does not fit, or heads of more than 256.
    """
    _check("delta_rule_forward", qkv, g, beta, state, slots, lengths, hk, hv, dk, dv)
    call = _Call(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, backward=False)
    for given, streams in call.groups(dict(out=out), dict(final=final)):
        if call.chunks:
            launch(dynadapt_delta_rule_inverse, (call.chunks, hv, streams), given, num_warps=WARPS, num_stages=1)
        given |= dict(states=None, writes=None, out_stride=out.stride(0))
        launch(dynadapt_delta_rule_forward, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)


def delta_rule_backward(dout, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, dqkv, dg, dbeta) -> None:
    """dqkv like qkv, dg, dbeta float32 [N, hv]; see ``dynadapt.ops.delta_rule``.

    Raises:
        ValueError: as ``delta_rule_forward``.
    """
    _check("delta_rule_backward", qkv, g, beta, state, slots, lengths, hk, hv, dk, dv)
    call = _Call(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, backward=True)
    if not call.chunks:
        return
    for given, streams in call.groups(dict(dout=dout, dqkv=dqkv, dg=dg, dbeta=dbeta), {}):
        given |= dict(out=None, final=None, out_stride=0, dout_stride=dout.stride(0), dstride=dqkv.stride(0))
        launch(dynadapt_delta_rule_inverse, (call.chunks, hv, streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_forward, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_states, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_backward, (call.chunks, hk, streams), given, num_warps=BACKWARD_WARPS, num_stages=1)


def reason(op: str) -> str:
    return "Triton, chunks of 64 tokens in float32, the triangular inverse of all at once"


_TYPES = dict.fromkeys(("qkv", "out", "dout", "dqkv"), "*bf16") | {"slots": "*i32", "lengths": "*i32", "scale": "fp32", "eps": "fp32"}
_TYPES |= dict.fromkeys(("g", "beta", "state", "inverses", "final", "states", "writes", "dstates", "dwrites", "dg", "dbeta"), "*fp32")


def _variants(hk: int, hv: int, d: int, dtype: str):
    sizes = dict(HK=hk, HV=hv, DK=d, DV=d, DKP=block(d, 256), BV=block(d, COLUMNS), C=CHUNK, B=DIAGONAL)
    kept = dict.fromkeys(("out", "final"))
    for suffix, kernel, absent, warps in (
        ("", dynadapt_delta_rule_inverse, {}, WARPS),
        ("", dynadapt_delta_rule_forward, dict.fromkeys(("states", "writes")), WARPS),
        (", states kept", dynadapt_delta_rule_forward, kept, WARPS),
        ("", dynadapt_delta_rule_states, {}, WARPS),
        ("", dynadapt_delta_rule_backward, {}, BACKWARD_WARPS),
    ):
        constexprs = {name: value for name, value in sizes.items() if name in kernel.arg_names} | absent
        yield variant(f"{hk}, {hv} x {d}, {dtype}{suffix}", kernel, _TYPES, constexprs, dtype=dtype, num_stages=1, num_warps=warps)


VARIANTS: list[Variant] = [*_variants(16, 32, 128, "bf16"), *_variants(16, 16, 64, "fp32")]
