"""Products of rows with their adapters where a stream may have any number of rows: what a head's adapters need.

    shrink    out = scale x m^T               u = h A^T, and dU = scale g Bt^T
    expand    y (+)= scale u m                the adapters' part of the logits, scale u Bt, and of dh, dU A
    gradient  dA (+)= dU^T h, dBt (+)= scale u^T g

Each row names its slot; the rows of one stand side by side. Other kernels of adapters are told how many rows a stream has; of scored
rows only the device knows. A program takes a block of rows and goes through the streams in it, one in most blocks, a product each, of which
every row keeps its own stream's: what is not finite in one stale adapter reaches no other stream's rows. ``spans`` finds where each slot's rows are, so that a
program of the gradient walks over a whole stream at once.

shrink reads g [rows, vocabulary] once and has far fewer row blocks than a GPU has multiprocessors: the columns are split into shares of
4,096, whatever the number of rows, so that a row's sum depends on nothing but its width. A second launch adds the shares in order.
Bound by memory, as low_rank.py is, whose tiles these take.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .common import Variant, block, dot, launch, next_power_of_2, scratch, variant, wait_for_previous
from .lora_gradient_plan import CHUNK
from .low_rank import DEPTH, EXPAND, MAX_RANK_TILE
from .token_sums import tile_times_left

SHARE = 4096  # columns that one program of shrink sums
ROWS, WARPS = 64, 4
SUM_BLOCK, SPAN_BLOCK = 1024, 1024


@triton.jit
def _last_of_stream(mine, slot, i, at, end):
    """One past the last row of the stream that begins at row ``at`` of a block, of rows i [BM] with slots mine [BM]."""
    return at + tl.maximum(tl.sum(((mine == slot) & (i >= at) & (i < end)).to(tl.int32), 0), 1)


@triton.jit(do_not_specialize=["rows"])
def dynadapt_row_shrink(
    x,
    m,
    slots,
    out,
    scale,
    rows,
    columns,
    x_stride,
    m_stride,
    M_WIDTH,
    out_stride,
    split_stride,
    R: tl.constexpr,
    SHARE: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """out[share, row, r] = scale sum over the share's columns of x[row, c] m[slot of row, r, c]. Grid (row blocks, rank tiles, shares)."""
    wait_for_previous()
    at = tl.program_id(0) * BM
    end = tl.minimum(at + BM, rows)
    i = at + tl.arange(0, BM)
    read = tl.minimum(i, rows - 1)
    mine = tl.load(slots + read)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    k = tl.arange(0, BK)
    first = tl.program_id(2) * SHARE
    last = tl.minimum(first + SHARE, columns)
    total = tl.zeros([BM, BR], tl.float32)
    while at < end:
        slot = tl.load(slots + at)
        x_tile = x + read[:, None].to(tl.int64) * x_stride + first + k[None, :]  # [BM, BK]
        m_tile = m + slot.to(tl.int64) * m_stride + first + r[None, :] * M_WIDTH + k[:, None]  # [BK, BR]
        acc = tl.zeros([BM, BR], tl.float32)
        for k0 in range(first, last, BK):
            inside = k < last - k0
            xs = tl.load(x_tile, mask=inside[None, :], other=0.0)
            acc = dot(xs, tl.load(m_tile, mask=inside[:, None] & (r < R)[None, :], other=0.0), acc)
            x_tile += BK
            m_tile += BK
        total = tl.where((mine == slot)[:, None], acc, total)
        at = _last_of_stream(mine, slot, i, at, end)
    out_tile = out + tl.program_id(2).to(tl.int64) * split_stride + i[:, None].to(tl.int64) * out_stride + r[None, :]
    tl.store(out_tile, (total * scale).to(out.dtype.element_ty), mask=(i < rows)[:, None] & (r < R)[None, :])


@triton.jit(do_not_specialize=["rows"])
def dynadapt_row_shares(partial, out, scale, rows, out_stride, split_stride, SHARES: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """out[row, r] = scale times the sum of partial [SHARES, rows, R] over its shares."""
    wait_for_previous()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < rows * R
    total = tl.zeros([BLOCK], tl.float32)
    for share in range(SHARES):
        total += tl.load(partial + share * split_stride + at, mask=live, other=0.0)
    tl.store(out + (at // R).to(tl.int64) * out_stride + at % R, (total * scale).to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def dynadapt_row_expand(
    u,
    m,
    slots,
    y,
    scale,
    rows,
    columns,
    u_stride,
    m_stride,
    M_WIDTH,
    y_stride,
    R: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """y[row, c] = scale sum of u[row, r] m[slot of row, r, c]. Grid (row blocks, column tiles)."""
    wait_for_previous()
    at = tl.program_id(0) * BM
    end = tl.minimum(at + BM, rows)
    i = at + tl.arange(0, BM)
    read = tl.minimum(i, rows - 1)
    mine = tl.load(slots + read)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    while at < end:
        slot = tl.load(slots + at)
        m_row = m + slot.to(tl.int64) * m_stride
        acc = tl.zeros([BM, BN], tl.float32)
        for r0 in range(0, R, BR):
            r = r0 + tl.arange(0, BR)
            us = tl.load(u + read[:, None].to(tl.int64) * u_stride + r[None, :], mask=(r < R)[None, :], other=0.0)
            ms = tl.load(m_row + r[:, None] * M_WIDTH + n[None, :], mask=(r < R)[:, None] & (n < columns)[None, :], other=0.0)
            acc = dot(us, ms, acc)
        total = tl.where((mine == slot)[:, None], acc, total)
        at = _last_of_stream(mine, slot, i, at, end)
    y_tile = y + i[:, None].to(tl.int64) * y_stride + n[None, :]
    tl.store(y_tile, (total * scale).to(y.dtype.element_ty), mask=(i < rows)[:, None] & (n < columns)[None, :])


@triton.jit(do_not_specialize=["rows"])
def dynadapt_row_spans(slots, spans, rows, BLOCK: tl.constexpr):
    """spans int32 [slots, 2]: the first row of each slot and how many it has; a program a slot."""
    wait_for_previous()
    slot = tl.program_id(0)
    first, count = rows, 0
    for start in range(0, rows, BLOCK):
        n = start + tl.arange(0, BLOCK)
        own = tl.load(slots + n, mask=n < rows, other=-1) == slot
        first = tl.minimum(first, tl.min(tl.where(own, n, rows), 0))
        count += tl.sum(own.to(tl.int32), 0)
    tl.store(spans + 2 * slot, first)
    tl.store(spans + 2 * slot + 1, count)


@triton.jit
def _put(out, columns, live, rows, total, scale, known):
    """scale total at rows (first, end, what is between two), added in one rounding to what is there of rows before ``known``."""
    r0, end, stride = rows
    r = r0 + tl.arange(0, total.shape[1])[None, :]
    at = out + columns + r * stride
    tl.store(at, tl.fma(scale, total, tl.load(at, mask=live & (r < known), other=0.0)), mask=live & (r < end))


@triton.jit(do_not_specialize=["lo", "hi"])
def dynadapt_row_gradient(
    g,
    h,
    u,
    dU,
    slots,
    spans,
    dA,
    dBt,
    scale,
    lo,
    hi,
    V,
    g_stride,
    h_stride,
    u_stride,
    dU_stride,
    dA_stride,
    dBt_stride,
    H: tl.constexpr,
    R: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Of rows lo..hi, whose g [hi - lo, V] alone is there. Grid (tiles of dA's columns, then of dBt's; rank tiles). What rows of the
    same slot before lo gave is added to."""
    wait_for_previous()
    pid, r0 = tl.program_id(0), tl.program_id(1) * BR
    A_TILES: tl.constexpr = (H + BC - 1) // BC
    at = lo
    while at < hi:
        slot = tl.load(slots + at).to(tl.int64)
        first = tl.load(spans + 2 * slot)
        end = tl.maximum(tl.minimum(first + tl.load(spans + 2 * slot + 1), hi), at + 1)
        known = tl.where(first < lo, R, 0)
        if ACCUMULATE:
            known = tl.where(first < hi, R, 0)
        chunks = tl.cdiv(end - at, CHUNK)
        if pid < A_TILES:
            tokens = (at, end - at, 0, chunks)
            value = tile_times_left((dU, dU_stride), (h, h_stride), tokens, (r0, R), (pid * BC, H), BR, BC, BT, CHUNK)
            c = pid * BC + tl.arange(0, BC)[:, None]
            _put(dA + slot * dA_stride, c, c < H, (r0, R, H), value, 1.0, known)
        else:
            c0 = (pid - A_TILES) * BC
            left = (u + at.to(tl.int64) * u_stride, u_stride)
            tile = (g + (at - lo).to(tl.int64) * g_stride, g_stride)
            value_b = tile_times_left(left, tile, (0, end - at, 0, chunks), (r0, R), (c0, V), BR, BC, BT, CHUNK)
            c_b = c0 + tl.arange(0, BC)[:, None]
            _put(dBt + slot * dBt_stride, c_b, c_b < V, (r0, R, V), value_b, scale, known)
        at = end


def _tiles(itemsize: int, rank: int) -> dict:
    return dict(R=rank, BR=block(rank, MAX_RANK_TILE[itemsize]))


def _depth(itemsize: int, width: int, rank_tile: int) -> int:
    """Columns of a step of shrink; few where rows of ``width`` begin anywhere and are loaded value by value."""
    return min(DEPTH[itemsize], 128 if rank_tile < 64 else 64) if width % 16 == 0 else 32


def shrink(x, m, slots, scale, out) -> None:
    """out [N, R] = scale x m^T of each row's slot for x [N, C], m [slots, R, C]."""
    (N, C), R, itemsize = x.shape, m.shape[1], x.element_size()
    if not N:
        return
    tiles = _tiles(itemsize, R)
    shares = max(1, triton.cdiv(C, SHARE))
    grid = (triton.cdiv(N, ROWS), triton.cdiv(R, tiles["BR"]), shares)
    given = dict(x=x, m=m, slots=slots, out=out, scale=float(scale), rows=N, columns=C, x_stride=x.stride(0), SHARE=SHARE, BM=ROWS)
    given |= dict(
        m_stride=m.stride(0),
        M_WIDTH=m.stride(1),
        out_stride=out.stride(0),
        split_stride=0,
        BK=_depth(itemsize, m.stride(1), tiles["BR"]),
        **tiles,
    )
    if shares > 1:
        partial = scratch(x.device, "row shares", next_power_of_2(shares * N * R))
        given |= dict(out=partial, scale=1.0, out_stride=R, split_stride=N * R)
    launch(dynadapt_row_shrink, grid, given, num_warps=WARPS, num_stages=3)
    if shares > 1:
        given |= dict(partial=partial, out=out, scale=float(scale), out_stride=out.stride(0), SHARES=shares, BLOCK=SUM_BLOCK)
        launch(dynadapt_row_shares, (triton.cdiv(N * R, SUM_BLOCK),), given, num_warps=WARPS)


def expand(u, m, slots, scale, y) -> None:
    """y [N, C] = scale u m of each row's slot for u [N, R], m [slots, R, C]."""
    (N, C), (BM, BN) = y.shape, EXPAND[y.element_size()]
    if not N:
        return
    given = dict(u=u, m=m, slots=slots, y=y, scale=float(scale), rows=N, columns=C, u_stride=u.stride(0), y_stride=y.stride(0))
    given |= dict(m_stride=m.stride(0), M_WIDTH=m.stride(1), BM=BM, BN=BN, **_tiles(y.element_size(), m.shape[1]))
    launch(dynadapt_row_expand, (triton.cdiv(N, BM), triton.cdiv(C, BN)), given, num_warps=WARPS, num_stages=2)


def spans(slots, count: int):
    """int32 [count, 2], in scratch memory: the first of each slot's rows and how many it has."""
    found = scratch(slots.device, "row spans", count, 2, dtype=torch.int32)
    launch(dynadapt_row_spans, (count,), dict(slots=slots, spans=found, rows=len(slots), BLOCK=SPAN_BLOCK), num_warps=WARPS)
    return found


def _gradient_tiles(itemsize: int, hidden: int, rank: int) -> tuple[dict, dict]:
    """(constants, options), as those of lora_gradient_plan.py."""
    wide = itemsize == 2
    tiles = dict(H=hidden, R=rank, BR=block(rank, 64 if wide else 32), BC=64, BT=64 if wide else 16, CHUNK=CHUNK)
    return tiles, dict(num_warps=4, num_stages=3 if wide else 2)


def gradient(g, h, u, dU, slots, found, scale, lo: int, hi: int, dA, dBt, accumulate: bool) -> None:
    """dA (+)= dU^T h, dBt (+)= scale u^T g over rows lo..hi, of which g [hi - lo, V or more] is; all else is of all rows.
    ``found``: their ``spans``."""
    V, (tiles, options) = dBt.shape[2], _gradient_tiles(h.element_size(), h.shape[1], dBt.shape[1])
    grid = (triton.cdiv(h.shape[1], tiles["BC"]) + triton.cdiv(V, tiles["BC"]), triton.cdiv(dBt.shape[1], tiles["BR"]))
    strides = dict(g_stride=g.stride(0), h_stride=h.stride(0), u_stride=u.stride(0), dU_stride=dU.stride(0))
    given = dict(g=g, h=h, u=u, dU=dU, slots=slots, spans=found, dA=dA, dBt=dBt, scale=float(scale), lo=lo, hi=hi, V=V, **strides, **tiles)
    given |= dict(dA_stride=dA.stride(0), dBt_stride=dBt.stride(0), ACCUMULATE=accumulate)
    launch(dynadapt_row_gradient, grid, given, **options)


_TYPES = dict.fromkeys(("x", "u", "m", "y", "g", "h", "dU"), "*bf16") | dict.fromkeys(("slots", "spans"), "*i32")
_TYPES |= dict.fromkeys(("dA", "dBt", "partial"), "*fp32") | {"scale": "fp32"}
_LOOSE = ("columns", "V", "split_stride")
_ANYWHERE = (*_LOOSE, "m", "m_stride", "M_WIDTH", "dBt", "dBt_stride")  # rows of a vocabulary that is no multiple of 16


def _variants():
    for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
        for rank, width, loose in ((16, 2048, _LOOSE), (64, 2048, _LOOSE), (16, 50257, _ANYWHERE)):
            core = dict(dtype=dtype, loose=loose, tensor_core=dtype == "bf16")
            name = f"{dtype} rank {rank}{' of odd columns' if width % 16 else ''}"
            tiles, (BM, BN), (gradients, options) = _tiles(itemsize, rank), EXPAND[itemsize], _gradient_tiles(itemsize, 2048, rank)
            for out in sorted({dtype, "fp32"}):
                shares = dict(SHARE=SHARE, BM=ROWS, BK=_depth(itemsize, width, tiles["BR"]), **tiles)
                yield variant(f"{name} to {out}", dynadapt_row_shrink, _TYPES | {"out": f"*{out}"}, shares, num_stages=3, **core)
            yield variant(name, dynadapt_row_expand, _TYPES, dict(BM=BM, BN=BN, **tiles), **core)
            yield variant(name, dynadapt_row_gradient, _TYPES, dict(ACCUMULATE=False, **gradients), **options, **core)
    sums = dict(SHARES=32, R=16, BLOCK=SUM_BLOCK)
    yield variant("bf16", dynadapt_row_shares, _TYPES | {"out": "*bf16"}, sums, loose=_LOOSE)
    yield variant("any", dynadapt_row_spans, _TYPES, dict(BLOCK=SPAN_BLOCK))


# Tiles are chosen for sm_90; sm_80 spills six registers in two of them.
VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=24)) for v in _variants()]
