"""RMSNorm of every head times SiLU of its gate. One launch forward, one backward (two when weights learn).

The N H heads of all tokens are one list, of which a program takes a tile, as in head_norm.py; x and gate are read once, and rows may be
apart in memory. Weight gradients are summed in two phases, each program over a fixed set of tiles into scratch, then over programs in
order: no atomics, the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, Variant, block, scratch, variant, wait_for_previous

TILE = 1024  # elements
PROGRAMS = 264  # two for each SM where rows are summed


@triton.jit(do_not_specialize=["rows"])
def dynadapt_gated_norm_forward(
    x,
    gate,
    weight,
    eps,
    y,
    rstd,
    rows,
    x_stride,
    gate_stride,
    y_stride,
    H: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BR: tl.constexpr,
):
    wait_for_previous()
    row = tl.program_id(0) * BR + tl.arange(0, BR)  # token * H + head
    token, c = (row // H).to(tl.int64)[:, None], tl.arange(0, DP)
    mask = (row < rows)[:, None] & (c < D)[None, :]
    at = (row % H)[:, None] * D + c[None, :]
    v = tl.load(x + token * x_stride + at, mask=mask, other=0).to(tl.float32)
    z = tl.load(gate + token * gate_stride + at, mask=mask, other=0).to(tl.float32)
    w = tl.load(weight + c, mask=c < D, other=0).to(tl.float32)[None, :]
    scale = 1 / tl.sqrt(tl.sum(v * v, 1) / D + eps)  # [BR]
    tl.store(y + token * y_stride + at, v * scale[:, None] * w * (z / (1 + tl.exp(-z))), mask=mask)
    tl.store(rstd + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def dynadapt_gated_norm_backward(
    dy,
    x,
    gate,
    weight,
    rstd,
    dx,
    dgate,
    partial,
    rows,
    dy_stride,
    x_stride,
    gate_stride,
    dx_stride,
    dgate_stride,
    H: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BR: tl.constexpr,
    LEARNS: tl.constexpr,
):
    wait_for_previous()
    c = tl.arange(0, DP)
    w = tl.load(weight + c, mask=c < D, other=0).to(tl.float32)[None, :]
    dweight = tl.zeros([DP], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = tile * BR + tl.arange(0, BR)
        token = (row // H).to(tl.int64)[:, None]
        mask = (row < rows)[:, None] & (c < D)[None, :]
        at = (row % H)[:, None] * D + c[None, :]
        g = tl.load(dy + token * dy_stride + at, mask=mask, other=0).to(tl.float32)
        z = tl.load(gate + token * gate_stride + at, mask=mask, other=0).to(tl.float32)
        scale = tl.load(rstd + row, mask=row < rows, other=0)[:, None]
        xhat = tl.load(x + token * x_stride + at, mask=mask, other=0).to(tl.float32) * scale
        sigma = 1 / (1 + tl.exp(-z))
        through = g * (z * sigma)
        gw = through * w
        tl.store(dx + token * dx_stride + at, (gw - xhat * (tl.sum(gw * xhat, 1) / D)[:, None]) * scale, mask=mask)
        tl.store(dgate + token * dgate_stride + at, g * xhat * w * sigma * (1 + z * (1 - sigma)), mask=mask)
        if LEARNS:
            dweight += tl.sum(through * xhat, 0)
    if LEARNS:
        tl.store(partial + tl.program_id(0) * DP + c, dweight)


@triton.jit(do_not_specialize=["programs"])
def dynadapt_gated_norm_weight(partial, dweight, programs, D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr):
    wait_for_previous()
    c = tl.arange(0, DP)
    total = tl.zeros([DP], tl.float32)
    for first in range(0, programs, BP):
        p = first + tl.arange(0, BP)
        total += tl.sum(tl.load(partial + p[:, None] * DP + c[None, :], mask=(p < programs)[:, None], other=0), 0)
    tl.store(dweight + c, tl.load(dweight + c, mask=c < D, other=0) + total, mask=c < D)


def _geometry(op, x, d):
    if d < 1 or x.shape[1] % d:
        raise ValueError(f"{op}: x has {x.shape[1]} columns, accepted is a multiple of d, {d}")
    dp = block(d, 1024)
    return {"H": x.shape[1] // d, "D": d, "DP": dp, "BR": max(1, TILE // dp)}, x.shape[0] * (x.shape[1] // d)


def gated_norm_forward(x, gate, weight, eps, d, y, rstd) -> None:
    """y like x and gate [N, H d], rstd [N, H]; see ``dynadapt.ops.gated_norm``."""
    geometry, rows = _geometry("gated_norm_forward", x, d)
    dynadapt_gated_norm_forward[(triton.cdiv(rows, geometry["BR"]),)](
        x, gate, weight, eps, y, rstd, rows, x.stride(0), gate.stride(0), y.stride(0), **geometry, num_warps=4, num_stages=1, **FUSION
    )


def gated_norm_backward(dy, x, gate, weight, rstd, d, dx, dgate, dweight) -> None:
    """dx, dgate like x; dweight [d] is added to when given; see ``dynadapt.ops.gated_norm``."""
    geometry, rows = _geometry("gated_norm_backward", x, d)
    learns, tiles = dweight is not None, triton.cdiv(rows, geometry["BR"])
    partial = scratch(x.device, "gated_norm_partial", PROGRAMS, geometry["DP"]) if learns else None
    programs = min(tiles, PROGRAMS) if learns else tiles
    dynadapt_gated_norm_backward[(programs,)](
        *(dy, x, gate, weight, rstd, dx, dgate, partial, rows),
        *(t.stride(0) for t in (dy, x, gate, dx, dgate)),
        **geometry,
        **{"LEARNS": learns, "num_warps": 4, "num_stages": 1},
        **FUSION,
    )
    if learns:
        dynadapt_gated_norm_weight[(1,)](partial, dweight, programs, D=d, DP=geometry["DP"], BP=16, num_warps=4, num_stages=1, **FUSION)


_TYPES = dict.fromkeys(("x", "gate", "weight", "y", "dy", "dx", "dgate"), "*bf16")
_TYPES |= {"eps": "fp32", "rstd": "*fp32", "partial": "*fp32", "dweight": "*fp32"}


def _variants(d: int, dtype: str):
    dp = block(d, 1024)
    geometry, name = {"H": 32, "D": d, "DP": dp, "BR": max(1, TILE // dp)}, f"d {d}, {dtype}"
    for suffix, kernel, constexprs in (
        ("", dynadapt_gated_norm_forward, geometry),
        ("", dynadapt_gated_norm_backward, {**geometry, "LEARNS": False, "partial": None}),
        (", weights learn", dynadapt_gated_norm_backward, {**geometry, "LEARNS": True}),
        ("", dynadapt_gated_norm_weight, {"D": d, "DP": dp, "BP": 16}),
    ):
        yield variant(name + suffix, kernel, _TYPES, constexprs, dtype=dtype, num_stages=1)


VARIANTS: list[Variant] = [*_variants(128, "bf16"), *_variants(128, "fp32")]
