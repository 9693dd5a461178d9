"""The adapters' products where ranks and scales are each slot's own (dynadapt/ops/slot_adapters.py): A and Bt lie in one buffer.

    shrink    u = x A^T, and dU_p = scale_p dy_p Bt_p^T
    expand    y_p = scale_p u_p Bt_p + b, and dx = dU A; cuBLAS then adds the base product onto it, or it is added onto that
    gradient  dA = dU^T x and dBt_p = scale_p u_p^T dy_p

A program reads from a table where its stream's adapter begins, and its ranks and scales; beyond a slot's rank it has nothing to do
and ends, so that grids are those of the widest slot and nothing on the host depends on who is in a call. Each contraction is summed
in one order whatever the other slots are. Bound by memory, as low_rank.py and lora_gradient.py are, whose tiles these take;
not split further where streams are few.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl

from .common import Variant, block, dot, launch, variant, wait_for_previous
from .tiles import locate, part_columns, three
from .token_sums import put, tile_times_left

WARPS, CHUNK = 4, 512
EXPAND = {2: (64, 128), 4: (32, 64)}  # rows and columns of a program, by the element's bytes
SHRINK = {2: (64, 128), 4: (32, 32)}  # rows and depth
RANK_TILE = {2: 64, 4: 16}


@triton.jit
def own_rows(table, slot, part, PARTS: tl.constexpr, WHOLE: tl.constexpr):
    """(first row of A, rank) of one part of a slot's adapter; WHOLE: of all parts together."""
    ranks = table + slot * (2 + PARTS) + 2
    first, rank = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    for p in tl.static_range(PARTS):
        own = tl.load(ranks + p)
        if WHOLE:
            rank += own
        else:
            first += tl.where(p < part, own, 0)
            rank = tl.where(p == part, own, rank)
    return first, rank


@triton.jit(do_not_specialize=["T"])
def dynadapt_slot_shrink(
    x,
    m,
    table,
    scales,
    slots,
    out,
    T,
    x_stride,
    out_stride,
    M_WIDTH,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    R_TILES: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """out[row, first_p + r] = scale_p sum over part p's columns of x[row, c] m[r, c]; WHOLE: m is A, of one part and scale 1, else Bt."""
    wait_for_previous()
    blocks = tl.cdiv(T, BM)
    stream = tl.program_id(0) // blocks
    within = (tl.program_id(0) % blocks) * BM
    row = stream.to(tl.int64) * T + within
    part = tl.program_id(1) // R_TILES
    start, size = part_columns(part, C0, C1, C2)
    slot = tl.load(slots + stream).to(tl.int64)
    first, rank = own_rows(table, slot, part, PARTS, WHOLE)
    r0 = (tl.program_id(1) % R_TILES) * BR
    if r0 < rank:
        i = tl.arange(0, BM)
        k = tl.arange(0, BK)
        r = r0 + tl.arange(0, BR)
        own = m + tl.load(table + slot * (2 + PARTS) + (0 if WHOLE else 1))
        scale = 1.0 if WHOLE else tl.load(scales + slot * PARTS + part)
        x_tile = x + row * x_stride + start + tl.minimum(i, T - 1 - within)[:, None] * x_stride + k[None, :]  # [BM, BK]
        m_tile = own + start + r[None, :] * M_WIDTH + k[:, None]  # [BK, BR]
        acc = tl.zeros([BM, BR], tl.float32)
        for k0 in range(0, size, BK):
            inside = k < size - k0
            xs = tl.load(x_tile, mask=inside[None, :], other=0.0)
            acc = dot(xs, tl.load(m_tile, mask=inside[:, None] & (r < rank)[None, :], other=0.0), acc)
            x_tile += BK
            m_tile += BK
        out_tile = out + row * out_stride + i[:, None] * out_stride + (first + r)[None, :]
        tl.store(out_tile, (acc * scale).to(out.dtype.element_ty), mask=(i < T - within)[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["T"])
def dynadapt_slot_expand(
    u,
    m,
    table,
    scales,
    slots,
    bias,
    y,
    T,
    u_stride,
    y_stride,
    M_WIDTH,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    ONTO: tl.constexpr,
):
    """y_p = scale_p u_p m_p + bias (ONTO: + y_p); WHOLE: m is A, of one part and scale 1, else Bt."""
    wait_for_previous()
    blocks = tl.cdiv(T, BM)
    stream = tl.program_id(0) // blocks
    within = (tl.program_id(0) % blocks) * BM
    row = stream.to(tl.int64) * T + within
    part, start, size, column = locate(tl.program_id(1), C0, C1, C2, BN)
    slot = tl.load(slots + stream).to(tl.int64)
    first, rank = own_rows(table, slot, part, PARTS, WHOLE)
    own = m + tl.load(table + slot * (2 + PARTS) + (0 if WHOLE else 1))
    scale = 1.0 if WHOLE else tl.load(scales + slot * PARTS + part)
    i = tl.arange(0, BM)
    n = column + tl.arange(0, BN)
    stored, columns = (i < T - within)[:, None], (n < size)[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    for r0 in range(0, rank, BR):
        r = r0 + tl.arange(0, BR)
        u_tile = u + row * u_stride + i[:, None] * u_stride + (first + r)[None, :]  # [BM, BR]
        us = tl.load(u_tile, mask=stored & (r < rank)[None, :], other=0.0)
        acc = dot(us, tl.load(own + r[:, None] * M_WIDTH + start + n[None, :], mask=(r < rank)[:, None] & columns, other=0.0), acc)
    acc = acc * scale
    if bias is not None:
        acc += tl.load(bias + start + n, mask=n < size, other=0.0).to(tl.float32)[None, :]
    y_tile = y + row * y_stride + i[:, None] * y_stride + start + n[None, :]
    if ONTO:
        acc += tl.load(y_tile, mask=stored & columns, other=0.0).to(tl.float32)
    tl.store(y_tile, acc.to(y.dtype.element_ty), mask=stored & columns)


@triton.jit(do_not_specialize=["T", "chunks"])
def dynadapt_slot_gradient(
    dy,
    x,
    u,
    dU,
    table,
    scales,
    slots,
    dA,
    dBt,
    T,
    chunks,
    dy_stride,
    x_stride,
    u_stride,
    dU_stride,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    PARTS: tl.constexpr,
    K: tl.constexpr,
    A_TILES: tl.constexpr,
    B_TILES: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid (tiles of the widest dA, then of the widest dBt, streams). A_TILES, B_TILES: row tiles of these."""
    wait_for_previous()
    pid, s = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + s).to(tl.int64)
    row = table + slot * (2 + PARTS)
    tokens = (s.to(tl.int64) * T, T, 0, chunks)
    PROGRAMS_A: tl.constexpr = A_TILES * ((K + BC - 1) // BC)
    if pid < PROGRAMS_A:
        _, width = own_rows(table, slot, 0, PARTS, True)
        r0 = pid % A_TILES * BR
        if r0 < width:
            c0 = pid // A_TILES * BC
            value = tile_times_left((dU, dU_stride), (x, x_stride), tokens, (r0, width), (c0, K), BR, BC, BT, CHUNK)
            c = c0 + tl.arange(0, BC)[:, None]
            put(dA + tl.load(row), c, c < K, (r0, width, K), value, 1.0, ACCUMULATE)
    else:
        r0 = (pid - PROGRAMS_A) % B_TILES * BR
        part, start, size, column = locate((pid - PROGRAMS_A) // B_TILES, C0, C1, C2, BC)
        first, rank = own_rows(table, slot, part, PARTS, False)
        largest = rank
        for p in tl.static_range(PARTS):
            largest = tl.maximum(largest, tl.load(row + 2 + p))
        if r0 < largest:
            rows, columns = (first + r0, first + rank), (start + column, start + size)
            value_b = tile_times_left((u, u_stride), (dy, dy_stride), tokens, rows, columns, BR, BC, BT, CHUNK)
            c_b = start + column + tl.arange(0, BC)[:, None]
            put(
                dBt + tl.load(row + 1),
                c_b,
                c_b < start + size,
                (r0, largest, C0 + C1 + C2),
                value_b,
                tl.load(scales + slot * PARTS + part),
                ACCUMULATE,
            )


def _given(own, slots, rows: int, **more) -> dict:
    return dict(table=own.table, scales=own.scales, slots=slots, T=rows // len(slots), **more)


def _columns(sizes) -> dict:
    return dict(zip(("C0", "C1", "C2"), three(sizes)))


def _shrink_tiles(itemsize: int, most: int) -> tuple[dict, dict]:
    """(constants, options) of products with ``most`` rows of an adapter; less deep where these are many, for sm_80's registers."""
    (BM, BK), BR = SHRINK[itemsize], block(most, RANK_TILE[itemsize])
    return dict(R_TILES=triton.cdiv(most, BR), BM=BM, BR=BR, BK=BK if BR < 64 else 64), dict(num_warps=WARPS, num_stages=3)


def _expand_tiles(itemsize: int, most: int) -> tuple[dict, dict]:
    BM, BN = EXPAND[itemsize]
    return dict(BM=BM, BN=BN, BR=block(most, RANK_TILE[itemsize])), dict(num_warps=WARPS, num_stages=2)


def _gradient_tiles(itemsize: int, width: int, rank: int) -> tuple[dict, dict]:
    """Of the widest dA [width, K] and dBt [rank, O]. Sums of 128 rows are in the registers of 8 warps, of which 4 have too few."""
    wide = itemsize == 2
    BR = block(width, 128 if wide else 32)
    tiles = dict(A_TILES=triton.cdiv(width, BR), B_TILES=triton.cdiv(rank, BR), BR=BR, BC=64, BT=64 if wide else 16, CHUNK=CHUNK)
    return tiles, dict(num_warps=8 if BR >= 128 else WARPS, num_stages=3 if wide else 2)


def _shrink(x, m, slots, own, sizes, out, whole: bool) -> None:
    N, streams = x.shape[0], len(slots)
    tiles, options = _shrink_tiles(x.element_size(), own.width if whole else own.rank)
    grid = (streams * triton.cdiv(N // streams, tiles["BM"]), len(sizes) * tiles["R_TILES"])
    given = _given(own, slots, N, x=x, m=m, out=out, x_stride=x.stride(0), out_stride=out.stride(0), M_WIDTH=sum(sizes))
    launch(dynadapt_slot_shrink, grid, given, PARTS=own.parts, WHOLE=whole, **tiles, **_columns(sizes), **options)


def _expand(u, m, slots, own, bias, sizes, y, onto: bool, whole: bool) -> None:
    N, streams = y.shape[0], len(slots)
    tiles, options = _expand_tiles(y.element_size(), own.width if whole else own.rank)
    grid = (streams * triton.cdiv(N // streams, tiles["BM"]), sum(triton.cdiv(size, tiles["BN"]) for size in sizes))
    given = _given(own, slots, N, u=u, m=m, bias=bias, y=y, u_stride=u.stride(0), y_stride=y.stride(0), M_WIDTH=sum(sizes))
    launch(dynadapt_slot_expand, grid, given, PARTS=own.parts, WHOLE=whole, ONTO=onto, **tiles, **_columns(sizes), **options)


def forward(x, A, Bt, slots, own, bias, sizes, u, y, onto: bool = False) -> None:
    """u = x A^T, and y_p = scale u_p Bt_p + bias, added to y where ``onto`` is set."""
    _shrink(x, A, slots, own, [x.shape[1]], u, whole=True)
    _expand(u, Bt, slots, own, bias, sizes, y, onto, whole=False)


def backward(dy, A, Bt, slots, own, sizes, dU, dx, onto: bool = False) -> None:
    """dU_p = scale dy_p Bt_p^T, and dx = dU A unless it is None, added to it where ``onto`` is set."""
    _shrink(dy, Bt, slots, own, sizes, dU, whole=False)
    if dx is not None:
        _expand(dU, A, slots, own, None, [dx.shape[1]], dx, onto, whole=True)


def gradient(dy, x, u, dU, sizes, own, slots, dA, dBt, accumulate: bool) -> None:
    """dA = dU^T x and dBt_p = scale u_p^T dy_p of ``slots``, in flat buffers."""
    check("lora_gradient", own, dy.shape[0], x.shape[1], sizes, slots, dict(dA=dA, dBt=dBt), dict(u=u, dU=dU))
    N, streams = dy.shape[0], len(slots)
    tiles, options = _gradient_tiles(dy.element_size(), own.width, own.rank)
    columns = [triton.cdiv(size, tiles["BC"]) for size in (x.shape[1], *sizes)]
    programs = tiles["A_TILES"] * columns[0] + tiles["B_TILES"] * sum(columns[1:])
    strides = dict(dy_stride=dy.stride(0), x_stride=x.stride(0), u_stride=u.stride(0), dU_stride=dU.stride(0))
    chunks = max(1, triton.cdiv(N // streams, CHUNK))
    given = _given(own, slots, N, dy=dy, x=x, u=u, dU=dU, dA=dA, dBt=dBt, chunks=chunks, **strides)
    constexprs = dict(PARTS=own.parts, K=x.shape[1], ACCUMULATE=accumulate, **tiles, **_columns(sizes))
    launch(dynadapt_slot_gradient, (programs, streams), given, **constexprs, **options)


def check(op: str, own, rows: int, k: int, sizes, slots, flat: dict, low: dict) -> None:
    """Raises ValueError for shapes that do not fit what the slots have."""
    if not 1 <= len(sizes) <= 3 or own.parts != len(sizes):
        raise ValueError(f"{op}: scale is of {own.parts} parts, accepted is {len(sizes)} of them, and 1 to 3")
    if not len(slots) or rows % len(slots):
        raise ValueError(f"{op}: slots has {len(slots)} entries for {rows} rows, accepted is a divisor")
    used = [place + count for count, place in _ends(own, k, sum(sizes))]
    for (name, buffer), needed in zip(flat.items(), (max(used[::2]), max(used[1::2]))):
        if buffer.dim() != 1 or buffer.stride(0) != 1 or len(buffer) < needed:
            raise ValueError(
                f"{op}: {name} has shape {tuple(buffer.shape)}, accepted is contiguous and flat, of at least {needed} elements"
            )
    for name, t in low.items():
        if t.dim() != 2 or t.shape[0] != rows or t.shape[1] < own.width or t.stride(1) != 1:
            raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, accepted is [{rows}, {own.width} or more]")


def _ends(own, k: int, o: int):
    """(elements, first element) of each slot's A, then Bt, one after the other."""
    for slot, (a, bt) in enumerate(own.places):
        ranks = own.ranks(slot)
        yield sum(ranks) * k, a
        yield max(ranks) * o, bt


_TYPES = dict.fromkeys(("x", "u", "m", "y", "dy", "dU"), "*bf16") | {"table": "*i64", "scales": "*fp32", "slots": "*i32"}
_TYPES |= {"out": "*bf16", "dA": "*fp32", "dBt": "*fp32"}
_LOOSE = ("m", "dA", "dBt", "u_stride", "out_stride", "dU_stride")  # adapters begin where they begin


def _variants():
    """Each of Bt's products, and of A's, whose parts are one (WHOLE) and which are as wide as all ranks together."""
    for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
        core = dict(loose=_LOOSE, dtype=dtype, tensor_core=dtype == "bf16")
        for rank in (16, 64):
            for whole, most, sizes in ((False, rank, (2048, 512, 512)), (True, 3 * rank, (2048,))):
                name, parts = f"qkv r{rank} {dtype}{', whole' if whole else ''}", _columns(sizes) | dict(PARTS=3, WHOLE=whole)
                tiles, options = _shrink_tiles(itemsize, most)
                yield variant(f"shrink {name}", dynadapt_slot_shrink, _TYPES, parts | tiles, **options, **core)
                tiles, options = _expand_tiles(itemsize, most)
                onto = dict(bias=None, ONTO=dtype == "fp32")
                yield variant(f"expand {name}", dynadapt_slot_expand, _TYPES, parts | onto | tiles, **options, **core)
            tiles, options = _gradient_tiles(itemsize, 3 * rank, rank)
            parts = _columns((2048, 512, 512)) | dict(PARTS=3, K=2048, ACCUMULATE=False)
            yield variant(f"gradient qkv r{rank} {dtype}", dynadapt_slot_gradient, _TYPES, parts | tiles, **options, **core)


# Tiles are chosen for sm_90; sm_80 spills eleven registers in one of them.
VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=48)) for v in _variants()]
