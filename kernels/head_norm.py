"""RMSNorm of every query and key head; values are copied through. One launch forward, one backward (two when weights learn).

A head of a token is one row of d numbers, and the N (hq + 2 hkv) of them are one list: a program takes a tile of
neighbouring rows, whatever heads they belong to, so all accesses are contiguous. Traffic is what the op must move: qkv in and
out forward, dout and qkv in and dqkv out backward, plus 4 bytes of rstd a head. Weight gradients are summed in two phases, each
program over a fixed set of rows into scratch, then over programs in order: no atomics, the same bits every time.

Where the heads of a kind are normalised together, a program takes a token's row, whose queries stay in registers, with the same
traffic; the second phase of its weight gradients is norm.py's.

Not fused: the projection before it (its rows come from cuBLAS) and attention's rotation after it, because backward wants x.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, Variant, block, scratch, variant, wait_for_previous
from .norm import COLUMNS, SUM_ROWS, dynadapt_norm_sums

TILE = 2048  # elements: two 16-byte loads of bfloat16 in flight a thread and operand, and registers for many warps
PROGRAMS = 264  # two for each SM where rows are summed


@triton.jit
def _weights(q_weight, k_weight, head, HQ: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """The weight [BR, DP] of each row's head in float32; rows of values get the keys'."""
    c = tl.arange(0, DP)
    q = tl.load(q_weight + c, mask=c < D, other=0).to(tl.float32)
    k = tl.load(k_weight + c, mask=c < D, other=0).to(tl.float32)
    return tl.where((head < HQ)[:, None], q[None, :], k[None, :])


@triton.jit(do_not_specialize=["rows"])
def dynadapt_head_norm_forward(
    qkv, q_weight, k_weight, eps, out, rstd, rows, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BR: tl.constexpr
):
    wait_for_previous()
    HEADS: tl.constexpr = HQ + 2 * HKV
    row = tl.program_id(0) * BR + tl.arange(0, BR)  # token * HEADS + head
    token, head = row // HEADS, row % HEADS
    exists, normed = row < rows, head < HQ + HKV
    c = tl.arange(0, DP)
    in_head = exists[:, None] & (c < D)[None, :]
    at = row[:, None].to(tl.int64) * D + c[None, :]
    x = tl.load(qkv + at, mask=in_head, other=0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(x * x, 1) / D + eps)  # [BR]
    y = x * scale[:, None] * _weights(q_weight, k_weight, head, HQ, D, DP)
    tl.store(out + at, tl.where(normed[:, None], y, x), mask=in_head)
    tl.store(rstd + token * (HQ + HKV) + head, scale, mask=exists & normed)


@triton.jit(do_not_specialize=["rows"])
def dynadapt_head_norm_backward(
    dout,
    qkv,
    q_weight,
    k_weight,
    rstd,
    dqkv,
    partial,
    rows,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BR: tl.constexpr,
    LEARNS: tl.constexpr,
):
    wait_for_previous()
    HEADS: tl.constexpr = HQ + 2 * HKV
    c = tl.arange(0, DP)
    dq, dk = tl.zeros([DP], tl.float32), tl.zeros([DP], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = tile * BR + tl.arange(0, BR)
        token, head = row // HEADS, row % HEADS
        exists, normed = row < rows, head < HQ + HKV
        in_head = exists[:, None] & (c < D)[None, :]
        at = row[:, None].to(tl.int64) * D + c[None, :]
        g = tl.load(dout + at, mask=in_head, other=0).to(tl.float32)
        scale = tl.load(rstd + token * (HQ + HKV) + head, mask=exists & normed, other=0)[:, None]
        xhat = tl.load(qkv + at, mask=in_head & normed[:, None], other=0).to(tl.float32) * scale
        gw = g * _weights(q_weight, k_weight, head, HQ, D, DP)
        dx = (gw - xhat * (tl.sum(gw * xhat, 1) / D)[:, None]) * scale
        tl.store(dqkv + at, tl.where(normed[:, None], dx, g), mask=in_head)
        if LEARNS:
            dq += tl.sum(tl.where((head < HQ)[:, None], g * xhat, 0.0), 0)
            dk += tl.sum(tl.where(((head >= HQ) & normed)[:, None], g * xhat, 0.0), 0)
    if LEARNS:
        mine = partial + tl.program_id(0) * (2 * DP) + c
        tl.store(mine, dq)
        tl.store(mine + DP, dk)


@triton.jit(do_not_specialize=["programs"])
def dynadapt_head_norm_weights(partial, dq_weight, dk_weight, programs, D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr):
    wait_for_previous()
    c = tl.arange(0, DP)
    dq, dk = tl.zeros([DP], tl.float32), tl.zeros([DP], tl.float32)
    for first in range(0, programs, BP):
        p = first + tl.arange(0, BP)
        at = partial + p[:, None] * (2 * DP) + c[None, :]
        dq += tl.sum(tl.load(at, mask=(p < programs)[:, None], other=0), 0)
        dk += tl.sum(tl.load(at + DP, mask=(p < programs)[:, None], other=0), 0)
    if dq_weight is not None:
        tl.store(dq_weight + c, tl.load(dq_weight + c, mask=c < D, other=0) + dq, mask=c < D)
    if dk_weight is not None:
        tl.store(dk_weight + c, tl.load(dk_weight + c, mask=c < D, other=0) + dk, mask=c < D)


@triton.jit
def _piece(x, weight, eps, y, rstd, W: tl.constexpr, WP: tl.constexpr):
    c = tl.arange(0, WP)
    inside = c < W
    v = tl.load(x + c, mask=inside, other=0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(v * v, 0) / W + eps)
    w = tl.load(weight + c, mask=inside, other=0).to(tl.float32)
    tl.store(y + c, v * scale * w, mask=inside)
    tl.store(rstd, scale)


@triton.jit
def _copy(x, y, W: tl.constexpr, WP: tl.constexpr):
    c = tl.arange(0, WP)
    tl.store(y + c, tl.load(x + c, mask=c < W), mask=c < W)


@triton.jit
def dynadapt_head_norm_forward_together(
    qkv, q_weight, k_weight, eps, out, rstd, Q: tl.constexpr, K: tl.constexpr, QP: tl.constexpr, KP: tl.constexpr
):
    """Q, K: elements of a row's query and key heads; QP, KP: powers of two that cover them."""
    wait_for_previous()
    n = tl.program_id(0).to(tl.int64)
    x, y = qkv + n * (Q + 2 * K), out + n * (Q + 2 * K)
    _piece(x, q_weight, eps, y, rstd + 2 * n, Q, QP)
    _piece(x + Q, k_weight, eps, y + Q, rstd + 2 * n + 1, K, KP)
    _copy(x + Q + K, y + Q + K, K, KP)


@triton.jit
def _piece_backward(dout, x, weight, rstd, dx, W: tl.constexpr, WP: tl.constexpr):
    """The piece's share of the weight gradient, [WP]."""
    c = tl.arange(0, WP)
    inside = c < W
    g = tl.load(dout + c, mask=inside, other=0).to(tl.float32)
    scale = tl.load(rstd)
    xhat = tl.load(x + c, mask=inside, other=0).to(tl.float32) * scale
    gw = g * tl.load(weight + c, mask=inside, other=0).to(tl.float32)
    tl.store(dx + c, (gw - xhat * (tl.sum(gw * xhat, 0) / W)) * scale, mask=inside)
    return g * xhat


@triton.jit(do_not_specialize=["rows"])
def dynadapt_head_norm_backward_together(
    dout,
    qkv,
    q_weight,
    k_weight,
    rstd,
    dqkv,
    dq_sums,
    dk_sums,
    rows,
    Q: tl.constexpr,
    K: tl.constexpr,
    QP: tl.constexpr,
    KP: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """dq_sums [programs, Q], dk_sums [programs, K]: what a program's rows add to the weight gradients."""
    wait_for_previous()
    program, programs = tl.program_id(0), tl.num_programs(0)
    dq, dk = tl.zeros([QP], tl.float32), tl.zeros([KP], tl.float32)
    for k in range(0, tl.cdiv(rows - program, programs)):
        n = program.to(tl.int64) + k * programs
        at = n * (Q + 2 * K)
        q_share = _piece_backward(dout + at, qkv + at, q_weight, rstd + 2 * n, dqkv + at, Q, QP)
        k_share = _piece_backward(dout + at + Q, qkv + at + Q, k_weight, rstd + 2 * n + 1, dqkv + at + Q, K, KP)
        _copy(dout + at + Q + K, dqkv + at + Q + K, K, KP)
        if LEARNS:
            dq += q_share
            dk += k_share
    if LEARNS:
        cq, ck = tl.arange(0, QP), tl.arange(0, KP)
        tl.store(dq_sums + program.to(tl.int64) * Q + cq, dq, mask=cq < Q)
        tl.store(dk_sums + program.to(tl.int64) * K + ck, dk, mask=ck < K)


def _together(q_weight, hq, d) -> bool:
    """Whether the weights are those of all heads at once."""
    return hq > 1 and q_weight.shape[0] == hq * d


def _rows_geometry(hq, hkv, d):
    """(constants, warps): a thread holds 16 elements of a row's queries until there are 16 warps."""
    qp, kp = block(hq * d, 1 << 20), block(hkv * d, 1 << 20)
    return {"Q": hq * d, "K": hkv * d, "QP": qp, "KP": kp}, max(1, min(16, qp // 512))


def _backward_together(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq_weight, dk_weight):
    (geometry, warps), rows = _rows_geometry(hq, hkv, d), qkv.shape[0]
    learns = dq_weight is not None or dk_weight is not None
    programs = min(rows, PROGRAMS) if learns else rows
    widths = geometry["Q"], geometry["K"]
    sums = [scratch(qkv.device, f"head_norm_{name}_sums", PROGRAMS, width) if learns else None for name, width in zip("qk", widths)]
    dynadapt_head_norm_backward_together[(programs,)](
        dout, qkv, q_weight, k_weight, rstd, dqkv, *sums, rows, LEARNS=learns, **geometry, num_warps=warps, num_stages=1, **FUSION
    )
    for partial, dweight, width in zip(sums, (dq_weight, dk_weight), widths):
        if dweight is not None:
            grid = (triton.cdiv(width, COLUMNS), 1)
            dynadapt_norm_sums[grid](partial, dweight, None, programs, 0, width, ROWS=SUM_ROWS, COLUMNS=COLUMNS, num_warps=4, **FUSION)


def _geometry(hq, hkv, d):
    dp = block(d, 1024)
    return {"HQ": hq, "HKV": hkv, "D": d, "DP": dp, "BR": max(1, TILE // dp)}


def _check(op, qkv, q_weight, k_weight, hq, hkv, d, *others):
    if min(hq, hkv, d) < 1:
        raise ValueError(f"{op}: hq, hkv, d are {hq}, {hkv}, {d}, accepted is at least 1 of each")
    if qkv.shape[1] != (hq + 2 * hkv) * d:
        raise ValueError(f"{op}: qkv has shape {list(qkv.shape)}, accepted is [any, {(hq + 2 * hkv) * d}]")
    each = (hq, hkv) if _together(q_weight, hq, d) else (1, 1)
    for name, weight, heads in zip(("q_weight", "k_weight"), (q_weight, k_weight), each):
        if weight.shape != (heads * d,):
            raise ValueError(f"{op}: {name} has shape {list(weight.shape)}, accepted is [{heads * d}]")
    if not all(t.is_contiguous() for t in (qkv, *others)):
        raise ValueError(f"{op}: expected contiguous tensors")


def head_norm_forward(qkv, q_weight, k_weight, eps, hq, hkv, d, out, rstd) -> None:
    """out like qkv [N, (hq + 2 hkv) d], rstd [N, hq + hkv] or [N, 2]; see ``dynadapt.ops.head_norm``."""
    _check("head_norm_forward", qkv, q_weight, k_weight, hq, hkv, d, out, rstd)
    if _together(q_weight, hq, d):
        constants, warps = _rows_geometry(hq, hkv, d)
        if qkv.shape[0]:
            dynadapt_head_norm_forward_together[(qkv.shape[0],)](
                qkv, q_weight, k_weight, eps, out, rstd, **constants, num_warps=warps, num_stages=1, **FUSION
            )
        return
    geometry, rows = _geometry(hq, hkv, d), qkv.shape[0] * (hq + 2 * hkv)
    dynadapt_head_norm_forward[(triton.cdiv(rows, geometry["BR"]),)](
        qkv, q_weight, k_weight, eps, out, rstd, rows, **geometry, num_warps=4, num_stages=1, **FUSION
    )


def head_norm_backward(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq_weight, dk_weight) -> None:
    """dqkv like qkv; dq_weight, dk_weight, like the weights, are added to when given; see ``dynadapt.ops.head_norm``."""
    _check("head_norm_backward", qkv, q_weight, k_weight, hq, hkv, d, dout, rstd, dqkv)
    if _together(q_weight, hq, d):
        if qkv.shape[0]:
            _backward_together(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq_weight, dk_weight)
        return
    geometry, rows = _geometry(hq, hkv, d), qkv.shape[0] * (hq + 2 * hkv)
    learns = dq_weight is not None or dk_weight is not None
    partial = scratch(qkv.device, "head_norm_partial", PROGRAMS, 2, geometry["DP"]) if learns else None
    tiles = triton.cdiv(rows, geometry["BR"])
    programs = min(tiles, PROGRAMS) if learns else tiles
    dynadapt_head_norm_backward[(programs,)](
        dout, qkv, q_weight, k_weight, rstd, dqkv, partial, rows, LEARNS=learns, **geometry, num_warps=4, num_stages=1, **FUSION
    )
    if learns:
        dynadapt_head_norm_weights[(1,)](
            partial, dq_weight, dk_weight, programs, D=d, DP=geometry["DP"], BP=16, num_warps=4, num_stages=1, **FUSION
        )


_TYPES = dict.fromkeys(("dout", "qkv", "q_weight", "k_weight", "out", "dqkv"), "*bf16") | {"eps": "fp32"}
_TYPES |= dict.fromkeys(("rstd", "partial", "dq_sums", "dk_sums", "dq_weight", "dk_weight"), "*fp32")


def _variants(d: int, dtype: str):
    geometry, name = _geometry(32, 8, d), f"d {d}, {dtype}"
    for suffix, kernel, constexprs in (
        ("", dynadapt_head_norm_forward, geometry),
        ("", dynadapt_head_norm_backward, {**geometry, "LEARNS": False, "partial": None}),
        (", weights learn", dynadapt_head_norm_backward, {**geometry, "LEARNS": True}),
        ("", dynadapt_head_norm_weights, {"D": d, "DP": geometry["DP"], "BP": 16}),
    ):
        yield variant(name + suffix, kernel, _TYPES, constexprs, dtype=dtype, num_stages=1)


def _together_variants(hq: int, hkv: int, d: int, dtype: str):
    (constants, warps), name = _rows_geometry(hq, hkv, d), f"{hq} and {hkv} heads of {d} together, {dtype}"
    for suffix, kernel, constexprs in (
        ("", dynadapt_head_norm_forward_together, constants),
        ("", dynadapt_head_norm_backward_together, {**constants, "LEARNS": False, "dq_sums": None, "dk_sums": None}),
        (", weights learn", dynadapt_head_norm_backward_together, {**constants, "LEARNS": True}),
    ):
        yield variant(name + suffix, kernel, _TYPES, constexprs, dtype=dtype, num_stages=1, num_warps=warps)


VARIANTS: list[Variant] = [*_variants(128, "bf16"), *_variants(64, "bf16"), *_variants(128, "fp32")]
VARIANTS += [*_together_variants(16, 16, 128, "bf16"), *_together_variants(40, 8, 128, "bf16")]
