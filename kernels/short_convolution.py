"""Causal depthwise convolution over a few tokens, then SiLU. One launch each way, two backward when weights learn.

A program takes a tile of one stream's rows and some channels. A row's last W inputs are loaded once for each of the W tiles that they
are shifted into: all but the first come from the first level of the cache. Backward computes the gradient of the sums again for each of
the W rows that an input reaches, instead of writing it. Weight gradients are summed in two phases, each program over a fixed set of
tiles into scratch, then over programs in order: no atomics, the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, Variant, block, scratch, variant, wait_for_previous

ROWS, CHANNELS = 8, 64  # of a tile
PROGRAMS = 64  # for each block of channels where rows are summed


@triton.jit
def _inputs(x, stride, state, slot, first, t, c, C, W: tl.constexpr, WANTED):
    """Rows t [BT] of a stream, from -(W - 1) on, in channels c [BC]; 0 where they are not wanted or not there."""
    inside = WANTED & (t >= 0)
    value = tl.load(x + (first + t)[:, None].to(tl.int64) * stride + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0)
    value = value.to(tl.float32)
    if state is not None:
        before = WANTED & (t < 0) & (t >= 1 - W)
        at = state + ((slot * (W - 1) + W - 1 + t)[:, None].to(tl.int64) * C + c[None, :])
        value += tl.load(at, mask=before[:, None] & (c < C)[None, :], other=0).to(tl.float32)
    return value


@triton.jit
def _sums(x, stride, state, slot, first, t, c, C, weight, W: tl.constexpr, WANTED, BT: tl.constexpr, BC: tl.constexpr):
    """z [BT, BC] of rows t."""
    z = tl.zeros([BT, BC], tl.float32)
    for w in tl.static_range(W):
        taps = tl.load(weight + c * W + w, mask=c < C, other=0).to(tl.float32)
        z += _inputs(x, stride, state, slot, first, t - (W - 1) + w, c, C, W, WANTED) * taps[None, :]
    return z


@triton.jit
def _stream(tile, T, BT: tl.constexpr, slots, lengths):
    """(the stream, its slot, its first row, its length, the tile's rows [BT])."""
    tiles = tl.cdiv(T, BT)
    s = tile // tiles
    length = T
    if lengths is not None:
        length = tl.load(lengths + s)
    return s, tl.load(slots + s), s * T, length, tile % tiles * BT + tl.arange(0, BT)


@triton.jit(do_not_specialize=["T"])
def dynadapt_short_convolution_forward(
    x, weight, state, slots, lengths, y, final, T, C, x_stride, y_stride, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr
):
    wait_for_previous()
    s, slot, first, length, t = _stream(tl.program_id(0), T, BT, slots, lengths)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    z = _sums(x, x_stride, state, slot, first, t, c, C, weight, W, t < length, BT, BC)
    value = z / (1 + tl.exp(-z))
    at = y + (first + t)[:, None].to(tl.int64) * y_stride + c[None, :]
    tl.store(at, value, mask=(t < T)[:, None] & (c < C)[None, :])
    if final is not None:
        if tl.program_id(0) % tl.cdiv(T, BT) == 0:
            r = tl.arange(0, BT)
            for start in tl.static_range(0, W - 1, BT):
                rows = _inputs(x, x_stride, state, slot, first, length - (W - 1) + start + r, c, C, W, start + r < W - 1)
                to = final + (s * (W - 1) + start + r)[:, None].to(tl.int64) * C + c[None, :]
                tl.store(to, rows, mask=(start + r < W - 1)[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=["T", "tiles"])
def dynadapt_short_convolution_backward(
    dy,
    x,
    weight,
    state,
    slots,
    lengths,
    dx,
    partial,
    T,
    C,
    tiles,
    dy_stride,
    x_stride,
    dx_stride,
    W: tl.constexpr,
    WP: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    LEARNS: tl.constexpr,
):
    wait_for_previous()
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    tap = tl.arange(0, WP)
    dweight = tl.zeros([WP, BC], tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        s, slot, first, length, t = _stream(tile, T, BT, slots, lengths)
        total = tl.zeros([BT, BC], tl.float32)
        for ahead in tl.static_range(W):
            u = t + ahead
            exists = u < length
            z = _sums(x, x_stride, state, slot, first, u, c, C, weight, W, exists, BT, BC)
            sigma = 1 / (1 + tl.exp(-z))
            at = dy + (first + u)[:, None].to(tl.int64) * dy_stride + c[None, :]
            dz = tl.load(at, mask=exists[:, None] & (c < C)[None, :], other=0).to(tl.float32) * sigma * (1 + z * (1 - sigma))
            taps = tl.load(weight + c * W + (W - 1 - ahead), mask=c < C, other=0).to(tl.float32)
            total += dz * taps[None, :]
            if LEARNS and ahead == 0:
                for w in tl.static_range(W):
                    inputs = _inputs(x, x_stride, state, slot, first, t - (W - 1) + w, c, C, W, exists)
                    dweight += tl.where((tap == w)[:, None], tl.sum(dz * inputs, 0)[None, :], 0.0)
        to = dx + (first + t)[:, None].to(tl.int64) * dx_stride + c[None, :]
        tl.store(to, tl.where((t < length)[:, None], total, 0.0), mask=(t < T)[:, None] & (c < C)[None, :])
    if LEARNS:
        mine = partial + (tl.program_id(0) * WP + tap)[:, None] * C + c[None, :]
        tl.store(mine, dweight, mask=(c < C)[None, :])


@triton.jit(do_not_specialize=["programs"])
def dynadapt_short_convolution_weight(partial, dweight, C, programs, W: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr):
    wait_for_previous()
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    for w in tl.static_range(W):
        total = tl.load(dweight + c * W + w, mask=c < C, other=0)
        for p in range(0, programs):
            total += tl.load(partial + (p * WP + w) * C + c, mask=c < C, other=0)
        tl.store(dweight + c * W + w, total, mask=c < C)


def _check(op, x, weight, slots):
    if weight.shape[0] != x.shape[1]:
        raise ValueError(f"{op}: weight has shape {list(weight.shape)}, accepted is [{x.shape[1]}, any]")
    if len(x) % len(slots):
        raise ValueError(f"{op}: slots has {len(slots)} entries for {len(x)} rows, accepted is a divisor of the rows")


def short_convolution_forward(x, weight, state, slots, lengths, y, final) -> None:
    """y like x [N, C], final [S, W - 1, C] or None; see ``dynadapt.ops.short_convolution``."""
    _check("short_convolution_forward", x, weight, slots)
    T, (C, W) = len(x) // len(slots), weight.shape
    final = None if W == 1 else final
    grid = (len(slots) * max(1, triton.cdiv(T, ROWS)), triton.cdiv(C, CHANNELS))
    dynadapt_short_convolution_forward[grid](
        *(x, weight, None if W == 1 else state, slots, lengths, y, final, T, C, x.stride(0), y.stride(0)),
        **{"W": W, "BT": ROWS, "BC": CHANNELS, "num_warps": 4, "num_stages": 1},
        **FUSION,
    )


def short_convolution_backward(dy, x, weight, state, slots, lengths, dx, dweight) -> None:
    """dx like x [N, C]; dweight float32 [C, W] is added to when given; see ``dynadapt.ops.short_convolution``."""
    _check("short_convolution_backward", x, weight, slots)
    T, (C, W) = len(x) // len(slots), weight.shape
    tiles, wp = len(slots) * triton.cdiv(T, ROWS), block(W, 1024, 1)
    learns = dweight is not None
    partial = scratch(x.device, "short_convolution_partial", PROGRAMS, wp, C) if learns else None
    programs = min(tiles, PROGRAMS) if learns else tiles
    dynadapt_short_convolution_backward[(programs, triton.cdiv(C, CHANNELS))](
        *(dy, x, weight, None if W == 1 else state, slots, lengths, dx, partial, T, C, tiles),
        *(dy.stride(0), x.stride(0), dx.stride(0)),
        **{"W": W, "WP": wp, "BT": ROWS, "BC": CHANNELS, "LEARNS": learns, "num_warps": 4, "num_stages": 1},
        **FUSION,
    )
    if learns:
        dynadapt_short_convolution_weight[(triton.cdiv(C, CHANNELS),)](
            partial, dweight, C, programs, W=W, WP=wp, BC=CHANNELS, num_warps=4, num_stages=1, **FUSION
        )


_TYPES = dict.fromkeys(("x", "weight", "state", "y", "final", "dy", "dx"), "*bf16")
_TYPES |= {"slots": "*i32", "lengths": "*i32", "partial": "*fp32", "dweight": "*fp32"}


def _variants(dtype: str):
    tile = {"W": 4, "BT": ROWS, "BC": CHANNELS}
    for suffix, kernel, constexprs in (
        ("", dynadapt_short_convolution_forward, tile),
        ("", dynadapt_short_convolution_backward, {**tile, "WP": 4, "LEARNS": False, "partial": None}),
        (", weights learn", dynadapt_short_convolution_backward, {**tile, "WP": 4, "LEARNS": True}),
        ("", dynadapt_short_convolution_weight, {"W": 4, "WP": 4, "BC": CHANNELS}),
    ):
        yield variant(f"width 4, {dtype}{suffix}", kernel, _TYPES, constexprs, dtype=dtype, num_stages=1)


VARIANTS: list[Variant] = [*_variants("bf16"), *_variants("fp32")]
