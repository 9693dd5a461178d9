"""The adapter's own products beside a matrix product by cuBLAS: ``shrink`` to the rank, ``expand`` from it.

    shrink  u_p = scale in_p M_p^T    forward u = x A^T, backward dU_p = scale dy_p Bt_p^T    all parts in one launch
    expand  y_p = scale u_p M_p + b   forward y_p = scale u_p Bt_p + b, backward dx = dU A    all parts in one launch

Both are bound by memory: shrink reads x (or dy) once, expand writes y (or dx) once; multiplications are 2 N R a column.
cuBLAS then adds the base product onto what expand wrote; a float8 product cannot, so there expand adds onto it. When there are too few row blocks to fill the GPU, shrink splits
its contraction and leaves float32 partial sums in scratch memory, which expand adds in fixed order, so that no further
launch is needed. Row blocks end where a stream ends. Not fused: the base product, which is why y is written and read once
more than in linear_fused.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dynadapt.ops.linear import each_part
from dynadapt.ops.slot_adapters import SlotAdapters

from . import slot_adapters
from .common import Variant, block, dot, launch, next_power_of_2, scratch, variant, wait_for_previous
from .tiles import grouped, locate, multiprocessors, part_columns, three

MAX_SPLITS, MAX_PARTS = 8, 3


@triton.jit(do_not_specialize=["streams", "T", "splits"])
def dynadapt_lora_shrink(
    x,
    m,
    slots,
    out,
    scale,
    streams,
    T,
    splits,
    x_stride,
    m_stride,
    out_stride,
    split_stride,
    M_WIDTH,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    ROWS: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """out[split, row, p ROWS + r] = scale sum over the split's share of part p's columns of x[row, c] m[slot, r, c]."""
    wait_for_previous()
    EVEN: tl.constexpr = (C0 % BK == 0) and (C1 % BK == 0) and (C2 % BK == 0)
    R_TILES: tl.constexpr = (ROWS + BR - 1) // BR
    blocks = tl.cdiv(T, BM)
    stream = tl.program_id(0) // blocks
    within = (tl.program_id(0) % blocks) * BM
    row = stream.to(tl.int64) * T + within
    part = tl.program_id(1) // R_TILES
    start, size = part_columns(part, C0, C1, C2)
    r = (tl.program_id(1) % R_TILES) * BR + tl.arange(0, BR)
    split = tl.program_id(2)
    share = tl.cdiv(tl.cdiv(size, BK), splits) * BK
    first = split * share
    last = tl.minimum(first + share, size)

    i = tl.arange(0, BM)
    k = tl.arange(0, BK)
    i_read = tl.minimum(i, T - 1 - within)
    slot = tl.load(slots + stream).to(tl.int64)
    x_tile = x + row * x_stride + start + first + i_read[:, None] * x_stride + k[None, :]  # [BM, BK]
    m_tile = m + slot * m_stride + start + first + r[None, :] * M_WIDTH + k[:, None]  # [BK, BR]
    acc = tl.zeros([BM, BR], tl.float32)
    for k0 in range(first, last, BK):
        inside = k < last - k0
        if EVEN:
            xs = tl.load(x_tile)
        else:
            xs = tl.load(x_tile, mask=inside[None, :], other=0.0)
        if EVEN and ROWS % BR == 0:
            ms = tl.load(m_tile)
        else:
            ms = tl.load(m_tile, mask=inside[:, None] & (r < ROWS)[None, :], other=0.0)
        acc = dot(xs, ms, acc)
        x_tile += BK
        m_tile += BK
    out_tile = out + split.to(tl.int64) * split_stride + row * out_stride + i[:, None] * out_stride + (part * ROWS + r)[None, :]
    tl.store(out_tile, (acc * scale).to(out.dtype.element_ty), mask=(i < T - within)[:, None] & (r < ROWS)[None, :])


@triton.jit(do_not_specialize=["streams", "T", "splits"])
def dynadapt_lora_expand(
    u,
    partial,
    m,
    slots,
    bias,
    y,
    scale,
    streams,
    T,
    splits,
    u_stride,
    split_stride,
    m_stride,
    y_stride,
    M_WIDTH: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    GROUP: tl.constexpr,
    ONTO: tl.constexpr,
):
    """y_p = scale u_p m_p + bias (ONTO: + y_p). With ``partial`` [splits, N, WIDTH], u is their sum, and is also stored."""
    wait_for_previous()
    TILES: tl.constexpr = (C0 + BN - 1) // BN + (C1 + BN - 1) // BN + (C2 + BN - 1) // BN
    blocks = tl.cdiv(T, BM)
    block, tile = grouped(tl.program_id(0), streams * blocks, TILES, GROUP)
    part, start, size, first = locate(tile, C0, C1, C2, BN)
    stream = block // blocks
    within = (block % blocks) * BM
    row = stream.to(tl.int64) * T + within
    i = tl.arange(0, BM)
    n = tl.arange(0, BN)
    stored = (i < T - within)[:, None]
    columns = (first + n < size)[None, :]
    slot = tl.load(slots + stream).to(tl.int64)

    acc = tl.zeros([BM, BN], tl.float32)
    for r0 in range(0, ROWS, BR):
        r = r0 + tl.arange(0, BR)
        valid = stored & (r < ROWS)[None, :]
        u_tile = u + row * u_stride + i[:, None] * u_stride + (part * ROWS + r)[None, :]  # [BM, BR]
        if partial is not None:
            p_tile = partial + row * WIDTH + i[:, None] * WIDTH + (part * ROWS + r)[None, :]
            total = tl.zeros([BM, BR], tl.float32)
            for _ in range(0, splits, 2):  # splits are even; two loads at once halve the waiting for memory
                total += tl.load(p_tile, mask=valid, other=0.0) + tl.load(p_tile + split_stride, mask=valid, other=0.0)
                p_tile += 2 * split_stride
            us = total.to(y.dtype.element_ty)
            if first == 0:
                tl.store(u_tile, us, mask=valid)
        else:
            us = tl.load(u_tile, mask=valid, other=0.0)
        m_tile = m + slot * m_stride + r[:, None] * M_WIDTH + (start + first) + n[None, :]  # [BR, BN]
        acc = dot(us, tl.load(m_tile, mask=(r < ROWS)[:, None] & columns, other=0.0), acc)
    acc = acc * scale
    if bias is not None:
        acc += tl.load(bias + start + first + n, mask=first + n < size, other=0.0).to(tl.float32)[None, :]
    y_tile = y + row * y_stride + i[:, None] * y_stride + (start + first) + n[None, :]
    if ONTO:
        acc += tl.load(y_tile, mask=stored & columns, other=0.0).to(tl.float32)
    tl.store(y_tile, acc.to(y.dtype.element_ty), mask=stored & columns)


@dataclass(frozen=True)
class Shrink:
    rows: int
    depth: int
    splits: int


# shrink: 4 warps, a step loads rows x 128 of x (up to 16 KiB) and up to 64 x 128 of A, three steps in flight.
# expand: 64 x 128 of y a program, 4 warps: 64 registers a thread for the product, 16-byte accesses along the columns.
WARPS, STAGES, GROUP = 4, 3, 8
# float32 runs on the plain cores, which keep operands in registers, hence its smaller tiles.
EXPAND = {2: (64, 128), 4: (32, 64)}
DEPTH = {2: 128, 4: 32}
MAX_RANK_TILE = {2: 64, 4: 16}


def pick_shrink(device, itemsize: int, streams: int, T: int, sizes, rank_tiles: int, may_split: bool) -> Shrink:
    """The most rows a program (A is then read least often) with which splitting can still fill the GPU."""
    processors, most = multiprocessors(device), min(MAX_SPLITS, max(1, max(sizes) // 512)) if may_split else 1
    programs = lambda rows: streams * -(-T // rows) * len(sizes) * rank_tiles  # noqa: E731
    rows = next((r for r in (64, 32) if programs(r) * most >= processors), 16)
    splits = max(1, min(most, 2 * processors // programs(rows)))
    return Shrink(rows, DEPTH[itemsize], 1 << splits.bit_length() - 1)  # a power of two: one, or an even number


def _constexprs(itemsize: int, sizes, rows: int, **more) -> dict:
    return dict(zip(("C0", "C1", "C2"), three(sizes)), ROWS=rows, BR=block(rows, MAX_RANK_TILE[itemsize]), **more)


def shrink(x, m, slots, scale, sizes, rows: int, out, may_split: bool):
    """out [N, P rows] = scale x_p m_p^T for x [N, sum sizes], m [slots, rows, sum sizes]. When it was split, out is not
    written: returns (partial sums, how many), which ``expand`` turns into it. Otherwise (None, 1)."""
    N, streams = x.shape[0], len(slots)
    T, rank_tile = N // streams, block(rows, MAX_RANK_TILE[x.element_size()])
    rank_tiles = triton.cdiv(rows, rank_tile)
    config = pick_shrink(x.device, x.element_size(), streams, T, sizes, rank_tiles, may_split)
    partial, target, split_stride = None, out, 0
    if config.splits > 1:
        split_stride = N * len(sizes) * rows
        partial = target = scratch(x.device, "lora_shrink", next_power_of_2(config.splits * split_stride))
    grid = (streams * triton.cdiv(T, config.rows), len(sizes) * rank_tiles, config.splits)
    out_stride = out.stride(0) if partial is None else len(sizes) * rows
    strides = dict(x_stride=x.stride(0), m_stride=m.stride(0), M_WIDTH=m.stride(1), out_stride=out_stride, split_stride=split_stride)
    given = dict(x=x, m=m, slots=slots, out=target, scale=float(scale), streams=streams, T=T, splits=config.splits, **strides)
    constexprs = _constexprs(x.element_size(), sizes, rows, BM=config.rows, BK=config.depth)
    launch(dynadapt_lora_shrink, grid, given, **constexprs, num_warps=WARPS, num_stages=STAGES)
    return partial, config.splits


def expand(u, partial, splits: int, m, slots, scale, bias, sizes, rows: int, y, onto: bool = False) -> None:
    """y_p = scale u_p m_p + bias, added to y where ``onto`` is set, for u [N, P rows], m [slots, rows, sum sizes]; see ``shrink`` for partial and splits."""
    N, streams, (BM, BN) = y.shape[0], len(slots), EXPAND[y.element_size()]
    T, width = N // streams, len(sizes) * rows
    grid = (streams * triton.cdiv(T, BM) * sum(triton.cdiv(s, BN) for s in sizes),)
    strides = dict(u_stride=u.stride(0), split_stride=N * width, m_stride=m.stride(0), y_stride=y.stride(0))
    given = dict(u=u, partial=partial, m=m, slots=slots, bias=bias, y=y, scale=float(scale), streams=streams, T=T, splits=splits, **strides)
    constexprs = _constexprs(y.element_size(), sizes, rows, M_WIDTH=m.stride(1), WIDTH=width, BM=BM, BN=BN, GROUP=GROUP, ONTO=onto)
    launch(dynadapt_lora_expand, grid, given, **constexprs, num_warps=WARPS, num_stages=2)


def forward(x, A, Bt, slots, scale, bias, sizes, u, y, onto: bool = False) -> None:
    """u = x A^T, and y_p = scale u_p Bt_p + bias, added to y where ``onto`` is set. With a ``scale`` of pairs (ops/linear.py), and where there
    are more than three, the parts have a launch each, and one of rank 0 gets its bias alone."""
    if isinstance(scale, SlotAdapters):
        return slot_adapters.forward(x, A, Bt, slots, scale, bias, sizes, u, y, onto)
    own = isinstance(scale, (list, tuple)) or len(sizes) > MAX_PARTS
    partial, splits = shrink(x, A, slots, 1.0, [x.shape[1]], A.shape[1], u, may_split=not own)
    if not own:
        return expand(u, partial, splits, Bt, slots, scale, bias, sizes, Bt.shape[1], y, onto)
    for rows, columns, rank, factor in each_part(scale, sizes, Bt.shape[1]):
        mine, part = y[:, columns], None if bias is None else bias[columns]
        if rank:
            expand(u[:, rows], None, 1, Bt[:, :rank, columns], slots, factor, part, [mine.shape[1]], rank, mine, onto)
        elif onto:
            mine.add_(0.0 if part is None else part)
        else:
            mine.copy_(torch.zeros((), dtype=y.dtype, device=y.device) if part is None else part)
    return None


def backward(dy, A, Bt, slots, scale, sizes, dU, dx, onto: bool = False) -> None:
    """dU_p = scale dy_p Bt_p^T, and dx = dU A unless it is None, added to it where ``onto`` is set."""
    partial, splits = None, 1
    if isinstance(scale, SlotAdapters):
        return slot_adapters.backward(dy, A, Bt, slots, scale, sizes, dU, dx, onto)
    if isinstance(scale, (list, tuple)) or len(sizes) > MAX_PARTS:
        for rows, columns, rank, factor in each_part(scale, sizes, Bt.shape[1]):
            if rank:
                mine = dy[:, columns]
                shrink(mine, Bt[:, :rank, columns], slots, factor, [mine.shape[1]], rank, dU[:, rows], may_split=False)
    else:
        partial, splits = shrink(dy, Bt, slots, scale, sizes, Bt.shape[1], dU, may_split=dx is not None)
    if dx is not None:
        expand(dU, partial, splits, A, slots, 1.0, None, [dx.shape[1]], A.shape[1], dx, onto)
    return None


_TYPES = dict.fromkeys(("x", "u", "m", "y"), "*bf16") | {"partial": "*fp32", "slots": "*i32", "scale": "fp32"}


def _shrink_variant(dtype: str, sizes, rows: int, block_rows: int, out: str) -> Variant:
    itemsize = 2 if dtype == "bf16" else 4
    constexprs = _constexprs(itemsize, sizes, rows, BM=block_rows, BK=DEPTH[itemsize])
    name, types = f"{dtype} -> {out} {block_rows} rows rank {rows} parts {len(sizes)}", _TYPES | {"out": f"*{out}"}
    core = dtype == "bf16" and block_rows == 64  # wgmma takes no fewer rows
    return variant(name, dynadapt_lora_shrink, types, constexprs, dtype=dtype, num_stages=STAGES, tensor_core=core)


def _expand_variant(dtype: str, sizes, rows: int, split: bool, onto: bool = False) -> Variant:
    itemsize = 2 if dtype == "bf16" else 4
    (BM, BN), absent = EXPAND[itemsize], dict.fromkeys(("bias",) if split else ("bias", "partial"))
    constexprs = _constexprs(
        itemsize, sizes, rows, M_WIDTH=sum(sizes), WIDTH=len(sizes) * rows, BM=BM, BN=BN, GROUP=GROUP, ONTO=onto, **absent
    )
    name = f"{dtype}{' of partial sums' if split else ''}{' onto y' if onto else ''} rank {rows} parts {len(sizes)}"
    return variant(name, dynadapt_lora_expand, _TYPES, constexprs, dtype=dtype, tensor_core=dtype == "bf16")


VARIANTS = [
    *(_shrink_variant("bf16", (2048,), 48, rows, out) for rows, out in ((64, "bf16"), (32, "fp32"), (16, "fp32"))),
    _shrink_variant("bf16", (2048, 512, 512), 16, 16, "fp32"),
    _shrink_variant("bf16", (4096,), 64, 64, "bf16"),
    _shrink_variant("fp32", (576,), 48, 64, "fp32"),
    _expand_variant("bf16", (2048, 512, 512), 16, True),
    _expand_variant("bf16", (2048, 512, 512), 16, False),
    _expand_variant("bf16", (2048,), 48, False),
    _expand_variant("bf16", (4096,), 192, True),
    _expand_variant("bf16", (2048, 512, 512), 16, False, onto=True),
    _expand_variant("fp32", (576,), 48, True),
]
