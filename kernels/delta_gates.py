"""The gates of the gated delta rule: one launch each way, two backward when weights learn.

A program takes a tile of rows with all their heads. Weight gradients are summed in two phases, each program over a fixed set of tiles
into scratch, then over programs in order: no atomics, the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, Variant, block, scratch, variant, wait_for_previous

TILE = 1024  # numbers
PROGRAMS = 64  # where rows are summed


@triton.jit
def softplus(x):
    """log(1 + e^x), also where e^x is lost beside 1 (Kahan's form of log1p)."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit(do_not_specialize=["rows"])
def dynadapt_delta_gates_forward(
    a, b, a_log, dt_bias, g, beta, rows, a_stride, b_stride, H: tl.constexpr, HP: tl.constexpr, BR: tl.constexpr
):
    wait_for_previous()
    row, h = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, HP)
    mask = (row < rows)[:, None] & (h < H)[None, :]
    token = row.to(tl.int64)[:, None]
    rate = tl.exp(tl.load(a_log + h, mask=h < H, other=0.0))[None, :]
    step = tl.load(a + token * a_stride + h[None, :], mask=mask, other=0.0).to(tl.float32)
    step += tl.load(dt_bias + h, mask=h < H, other=0.0)[None, :]
    tl.store(g + token * H + h[None, :], -rate * softplus(step), mask=mask)
    tl.store(
        beta + token * H + h[None, :], sigmoid(tl.load(b + token * b_stride + h[None, :], mask=mask, other=0.0).to(tl.float32)), mask=mask
    )


@triton.jit(do_not_specialize=["rows"])
def dynadapt_delta_gates_backward(
    dg,
    dbeta,
    a,
    b,
    a_log,
    dt_bias,
    da,
    db,
    partial,
    rows,
    a_stride,
    b_stride,
    da_stride,
    db_stride,
    H: tl.constexpr,
    HP: tl.constexpr,
    BR: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """partial [programs, 2, HP]: what each program's rows give to da_log and ddt_bias."""
    wait_for_previous()
    h = tl.arange(0, HP)
    rate = tl.exp(tl.load(a_log + h, mask=h < H, other=0.0))[None, :]
    bias = tl.load(dt_bias + h, mask=h < H, other=0.0)[None, :]
    da_log, ddt_bias = tl.zeros([HP], tl.float32), tl.zeros([HP], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = tile * BR + tl.arange(0, BR)
        mask = (row < rows)[:, None] & (h < H)[None, :]
        token = row.to(tl.int64)[:, None]
        given = tl.load(dg + token * H + h[None, :], mask=mask, other=0.0)
        step = tl.load(a + token * a_stride + h[None, :], mask=mask, other=0.0).to(tl.float32) + bias
        dstep = -given * rate * sigmoid(step)
        tl.store(da + token * da_stride + h[None, :], dstep.to(da.dtype.element_ty), mask=mask)
        sigma = sigmoid(tl.load(b + token * b_stride + h[None, :], mask=mask, other=0.0).to(tl.float32))
        of_rate = tl.load(dbeta + token * H + h[None, :], mask=mask, other=0.0) * sigma * (1.0 - sigma)
        tl.store(db + token * db_stride + h[None, :], of_rate.to(db.dtype.element_ty), mask=mask)
        if LEARNS:
            da_log -= tl.sum(given * rate * softplus(step), 0)
            ddt_bias += tl.sum(dstep, 0)
    if LEARNS:
        mine = partial + tl.program_id(0) * 2 * HP
        tl.store(mine + h, da_log)
        tl.store(mine + HP + h, ddt_bias)


@triton.jit(do_not_specialize=["programs"])
def dynadapt_delta_gates_weight(partial, da_log, ddt_bias, programs, H: tl.constexpr, HP: tl.constexpr):
    wait_for_previous()
    h = tl.arange(0, HP)
    log_sum, bias_sum = tl.zeros([HP], tl.float32), tl.zeros([HP], tl.float32)
    for p in range(0, programs):
        log_sum += tl.load(partial + p * 2 * HP + h)
        bias_sum += tl.load(partial + p * 2 * HP + HP + h)
    if da_log is not None:
        tl.store(da_log + h, tl.load(da_log + h, mask=h < H, other=0.0) + log_sum, mask=h < H)
    if ddt_bias is not None:
        tl.store(ddt_bias + h, tl.load(ddt_bias + h, mask=h < H, other=0.0) + bias_sum, mask=h < H)


def _geometry(op: str, a, b, a_log, dt_bias) -> dict:
    heads = len(a_log)
    for name, t, shape in (("a", a, (len(a), heads)), ("b", b, (len(a), heads)), ("dt_bias", dt_bias, (heads,))):
        if t.shape != shape:
            raise ValueError(f"{op}: {name} has shape {list(t.shape)}, accepted is {list(shape)}")
    width = block(heads, 1 << 30)
    return {"H": heads, "HP": width, "BR": max(1, TILE // width)}


def delta_gates_forward(a, b, a_log, dt_bias, g, beta) -> None:
    """g, beta float32 [N, hv] from a, b [N, hv] and a_log, dt_bias float32 [hv]; see ``dynadapt.ops.delta_gates``."""
    geometry = _geometry("delta_gates_forward", a, b, a_log, dt_bias)
    if not len(a):
        return
    dynadapt_delta_gates_forward[(triton.cdiv(len(a), geometry["BR"]),)](
        a, b, a_log, dt_bias, g, beta, len(a), a.stride(0), b.stride(0), **geometry, num_warps=4, num_stages=1, **FUSION
    )


def delta_gates_backward(dg, dbeta, a, b, a_log, dt_bias, da, db, da_log, ddt_bias) -> None:
    """da, db like a, b; da_log, ddt_bias float32 [hv] are added to when given; see ``dynadapt.ops.delta_gates``."""
    geometry = _geometry("delta_gates_backward", a, b, a_log, dt_bias)
    if not len(a):
        return
    learns, tiles = da_log is not None or ddt_bias is not None, triton.cdiv(len(a), geometry["BR"])
    partial = scratch(a.device, "delta_gates_partial", PROGRAMS, 2, geometry["HP"]) if learns else None
    programs = min(tiles, PROGRAMS) if learns else tiles
    dynadapt_delta_gates_backward[(programs,)](
        *(dg, dbeta, a, b, a_log, dt_bias, da, db, partial, len(a)),
        *(t.stride(0) for t in (a, b, da, db)),
        **geometry,
        **{"LEARNS": learns, "num_warps": 4, "num_stages": 1},
        **FUSION,
    )
    if learns:
        sizes = {name: geometry[name] for name in ("H", "HP")}
        dynadapt_delta_gates_weight[(1,)](partial, da_log, ddt_bias, programs, **sizes, num_warps=1, num_stages=1, **FUSION)


_TYPES = dict.fromkeys(("a", "b", "da", "db"), "*bf16")
_TYPES |= dict.fromkeys(("g", "beta", "dg", "dbeta", "a_log", "dt_bias", "da_log", "ddt_bias", "partial"), "*fp32")


def _variants(heads: int, dtype: str):
    width = block(heads, 1 << 30)
    sizes, name = {"H": heads, "HP": width, "BR": max(1, TILE // width)}, f"{heads} heads, {dtype}"
    for suffix, kernel, constexprs in (
        ("", dynadapt_delta_gates_forward, sizes),
        ("", dynadapt_delta_gates_backward, {**sizes, "LEARNS": False, "partial": None}),
        (", weights learn", dynadapt_delta_gates_backward, {**sizes, "LEARNS": True}),
        ("", dynadapt_delta_gates_weight, {"H": heads, "HP": width}),
    ):
        loose = ("a", "b", "da", "db")  # columns of one buffer
        yield variant(name + suffix, kernel, _TYPES, constexprs, dtype=dtype, num_stages=1, loose=loose)


VARIANTS: list[Variant] = [*_variants(32, "bf16"), *_variants(48, "fp32")]
