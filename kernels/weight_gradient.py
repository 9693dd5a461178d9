"""Weight gradients dW = dy^T x in float32, for all output rows or for chosen ones, and the estimate that chooses them.

dW is one matrix product whose contraction is over tokens: dy [N, O] and x [N, K] are read row by row as they lie and
enter wgmma transposed. 2 N n K operations; tiles of 128 x 256 where they fill the GPU, smaller ones for small layers, and
split over the tokens (a second launch adds the shares in a fixed order) where even those are few. Programs run in groups
of eight row tiles so that the columns of x that they share stay in L2.

Chosen rows are columns of dy that need not be neighbours. Small problems gather them while loading (runs of consecutive
rows share sectors); large ones first copy them together, once, because K / 256 tiles would otherwise gather them again
and two-byte loads cannot be pipelined. That launch moves 4 N n bytes for 2 N n K operations.

weight_gradient_update applies the gradient where it stands, in registers (epilogue.py), so that it is never in memory. It
uses tiles of 128 x 128 at most, because the optimizer's state needs registers too.

row_scores: |x_m|^2 by token, then sums down the columns of dy by blocks of tokens, then the root of their sum; three
launches, two where one block holds all tokens. It reads dy and x once.

cuBLAS is not used here: its bfloat16 product with float32 output is not in every torch that this project supports.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from . import epilogue
from .common import FUSION, Variant, block, dot, launch, scratch, variant, wait_for_previous
from .epilogue import apply_update, report
from .tiles import grouped

SMS = 132  # multiprocessors of an H200
SPLIT_TOKENS = 512  # a share of the tokens is at least this long
GATHER_ELEMENTS = 1 << 19  # from this many chosen values of dy on they are copied together first
GROUP = 8
SUM_BLOCK = 1024
SCORE_TOKENS = 256  # tokens of one block of the column sums
LENGTHS = ("N", "share")  # vary from call to call: never a reason to compile again


@triton.jit
def corner_of(pid, n, K, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a program's tile of [n, K]."""
    tile_m, tile_k = grouped(pid, tl.cdiv(n, BM), tl.cdiv(K, BN), GROUP)
    return tile_m * BM, tile_k * BN


@triton.jit
def product_tile(dy, x, rows, corner, tokens, width, K, GATHER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr):
    """dy[tokens, rows m0..]^T x[tokens, k0..]; [BM, BN]. dy, x: (tensor, stride between its tokens); tokens: (first, end);
    width: chosen rows, or columns that dy has."""
    dy_tensor, dy_stride = dy
    x_tensor, x_stride = x
    begin, end = tokens
    m = corner[0] + tl.arange(0, BM)
    k = corner[1] + tl.arange(0, BN)
    column = m
    if GATHER:
        column = tl.load(rows + m, mask=m < width, other=0)
    acc = tl.zeros([BM, BN], tl.float32)
    for t0 in range(begin, end, BT):
        t = t0 + tl.arange(0, BT)
        live = (t < end)[:, None]
        row = t.to(tl.int64)[:, None]
        a = tl.load(dy_tensor + row * dy_stride + column[None, :], mask=live & (m < width)[None, :], other=0.0)  # [BT, BM]
        b = tl.load(x_tensor + row * x_stride + k[None, :], mask=live & (k < K)[None, :], other=0.0)  # [BT, BN]
        acc = dot(tl.trans(a), b, acc)
    return acc


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_weight_gradient(
    dy,
    x,
    rows,
    dW,
    N,
    n,
    width,
    K,
    share,
    dy_stride,
    x_stride,
    dW_stride,
    GATHER: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grid (tiles, shares of the tokens). With several shares dW is [shares, n, K]."""
    wait_for_previous()
    split = tl.program_id(1)
    m0, k0 = corner_of(tl.program_id(0), n, K, BM, BN, GROUP)
    tokens = (split * share, tl.minimum(split * share + share, N))
    m = m0 + tl.arange(0, BM)
    k = k0 + tl.arange(0, BN)
    mask = (m < n)[:, None] & (k < K)[None, :]
    out = dW + (split.to(tl.int64) * n + m)[:, None] * dW_stride + k[None, :]
    value = product_tile((dy, dy_stride), (x, x_stride), rows, (m0, k0), tokens, width, K, GATHER, BM, BN, BT)
    if ACCUMULATE:
        value += tl.load(out, mask=mask, other=0.0)
    tl.store(out, value, mask=mask)


@triton.jit
def sum_of_shares(partial, offset, mask, shares, size):
    total = tl.zeros_like(offset).to(tl.float32)
    for i in range(0, shares):
        total += tl.load(partial + i * size + offset, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=("shares",))
def dynadapt_weight_gradient_sum(partial, dW, shares, n, K, dW_stride, BLOCK: tl.constexpr, ACCUMULATE: tl.constexpr):
    """Grid (blocks of [n, K],). partial [shares, n, K] is packed, dW need not be."""
    wait_for_previous()
    size = tl.full([1], n, tl.int64) * K
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size
    value = sum_of_shares(partial, offset, mask, shares, size)
    out = dW + offset // K * dW_stride + offset % K
    if ACCUMULATE:
        value += tl.load(out, mask=mask, other=0.0)
    tl.store(out, value, mask=mask)


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_weight_gradient_update(
    dy,
    x,
    rows,
    working,
    lr,
    skipped,
    counters,
    master,
    first,
    prior,
    stat,
    prior_rate,
    decay,
    momentum,
    eps,
    N,
    n,
    width,
    K,
    dy_stride,
    x_stride,
    working_stride,
    GATHER: tl.constexpr,
    CHOSEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    GROUP: tl.constexpr,
    RMS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    RATE: tl.constexpr,
    WORKING: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Grid (tiles,). The state is packed [n, K]; row rows[m] of the working copy belongs to its row m (CHOSEN)."""
    wait_for_previous()
    if tl.load(skipped) == 0:
        m0, k0 = corner_of(tl.program_id(0), n, K, BM, BN, GROUP)
        g = product_tile((dy, dy_stride), (x, x_stride), rows, (m0, k0), (0, N), width, K, GATHER, BM, BN, BT)
        m = m0 + tl.arange(0, BM)
        row = m
        if CHOSEN:
            row = tl.load(rows + m, mask=m < n, other=0)
        at = (m.to(tl.int64)[:, None] * K, row.to(tl.int64)[:, None] * working_stride, (m < n)[:, None])
        state, hyper = (master, first, prior, stat, prior_rate, working), (decay, momentum, eps)
        bad = apply_update(g, at, (k0, K, 1), state, tl.load(lr), hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        report(counters, skipped, 0, bad)


@triton.jit(do_not_specialize=("shares",))
def dynadapt_weight_gradient_update_sum(
    partial,
    rows,
    working,
    lr,
    skipped,
    counters,
    master,
    first,
    prior,
    stat,
    prior_rate,
    decay,
    momentum,
    eps,
    shares,
    n,
    K,
    working_stride,
    CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
    RMS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    RATE: tl.constexpr,
    WORKING: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Grid (blocks of [n, K],)."""
    wait_for_previous()
    if tl.load(skipped) == 0:
        size = tl.full([1], n, tl.int64) * K
        offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
        mask = offset < size
        g = sum_of_shares(partial, offset, mask, shares, size)
        row = offset // K
        if CHOSEN:
            row = tl.load(rows + row, mask=mask, other=0).to(tl.int64)
        at = (offset, row * working_stride + offset % K, mask)
        state, hyper = (master, first, prior, stat, prior_rate, working), (decay, momentum, eps)
        bad = apply_update(g, at, (0, 1, 0), state, tl.load(lr), hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        report(counters, skipped, 0, bad)


@triton.jit(do_not_specialize=("N",))
def dynadapt_gather_columns(dy, rows, out, N, n, width, dy_stride, BT: tl.constexpr, BM: tl.constexpr):
    """out [N, width] = dy[:, rows], zero behind the n rows. Grid (token blocks, column blocks)."""
    wait_for_previous()
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    column = tl.load(rows + m, mask=m < n, other=0)
    live = (t < N)[:, None]
    row = t.to(tl.int64)[:, None]
    value = tl.load(dy + row * dy_stride + column[None, :], mask=live & (m < n)[None, :], other=0.0)
    tl.store(out + row * width + m[None, :], value, mask=live & (m < width)[None, :])


GATHER = dict(BT=32, BM=128)


@dataclass(frozen=True)
class Plan:
    """How [n, K] summed over N tokens is cut into programs."""

    N: int
    n: int
    K: int
    constexprs: dict
    options: dict

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.n, self.constexprs["BM"]) * triton.cdiv(self.K, self.constexprs["BN"])

    @property
    def share(self) -> int:
        """Tokens of one program."""
        shares = max(1, min(SMS // max(1, self.tiles), self.N // SPLIT_TOKENS))
        step = self.constexprs["BT"]
        return max(step, triton.cdiv(triton.cdiv(self.N, shares), step) * step)

    @property
    def shares(self) -> int:
        return max(1, triton.cdiv(self.N, self.share))

    @property
    def sum_grid(self) -> tuple[int]:
        return (triton.cdiv(self.n * self.K, SUM_BLOCK),)


TILES = {  # (BM, BN, BT), warps, stages. The accumulator takes 128, 64 and 32 registers a thread; 144, 128 and 64 KiB are staged
    torch.bfloat16: [((128, 256, 64), 8, 3), ((128, 128, 64), 8, 4), ((64, 64, 64), 4, 4)],
    torch.float32: [((64, 64, 16), 4, 2)],  # no tensor cores: float32 is multiplied exactly
}

LARGEST, LARGEST_READING, SMALLEST = 128 * 256, 128 * 128, 64 * 64


def largest_tile(rows, reads: bool) -> int:
    """What registers allow: an epilogue that ``reads`` holds a second tile, and a gather loads single values."""
    return SMALLEST if rows is not None else LARGEST_READING if reads else LARGEST


def plan(dtype: torch.dtype, N: int, n: int, K: int, largest: int) -> Plan:
    """The largest tile of at most ``largest`` values that gives every multiprocessor one, or else the smallest."""
    choices = [c for c in TILES[dtype] if c[0][0] * c[0][1] <= largest]
    for (bm, bn, bt), warps, stages in choices:
        if triton.cdiv(n, bm) * triton.cdiv(K, bn) >= SMS:
            break
    return Plan(N, n, K, dict(BM=bm, BN=bn, BT=bt, GROUP=GROUP), dict(num_warps=warps, num_stages=stages))


def checked_chosen(op: str, dy, x, rows, outputs) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(dy, rows) as the product reads them: many chosen columns are copied together first."""
    if dy.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: x has {x.shape[0]} rows, accepted is the number of dy's, {dy.shape[0]}")
    shape = (dy.shape[1] if rows is None else rows.shape[0], x.shape[1])
    for name, tensor in (("dy", dy), ("x", x), *outputs.items()):
        if tensor.stride(1) != 1:
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}, accepted is 1 along its columns")
        if name in outputs and tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, accepted is {list(shape)}")
    N, n = dy.shape[0], shape[0]
    if rows is None or N * n < GATHER_ELEMENTS:
        return dy, rows
    width = triton.cdiv(n, 64) * 64  # whole 16-byte loads whatever n is
    gathered = scratch(dy.device, "gathered columns", block(N * width, 1 << 62), dtype=dy.dtype)[: N * width].view(N, width)
    grid = (triton.cdiv(N, GATHER["BT"]), triton.cdiv(width, GATHER["BM"]))
    dynadapt_gather_columns[grid](dy, rows, gathered, N, n, width, dy.stride(0), **GATHER, num_warps=4, **FUSION)
    return gathered, None


def family(p: Plan, dy, x, rows) -> dict:
    """What the launches of a call take, by name; ``dy`` and ``rows`` as the product reads them."""
    lengths = dict(N=p.N, share=p.share, shares=p.shares)
    sizes = dict(n=p.n, K=p.K, width=dy.shape[1] if rows is None else p.n, dy_stride=dy.stride(0), x_stride=x.stride(0))
    return dict(dy=dy, x=x, rows=rows, **lengths, **sizes, GATHER=rows is not None, BLOCK=SUM_BLOCK, **p.constexprs)


def launch_product(p: Plan, given: dict, dW, accumulate: bool) -> None:
    """dW [n, K], or [shares, n, K] packed when the tokens are split."""
    given = given if given["GATHER"] else {**given, "rows": dW}  # a pointer that is never used
    out = dict(dW=dW, dW_stride=dW.stride(-2), ACCUMULATE=accumulate)
    launch(dynadapt_weight_gradient, (p.tiles, p.shares), given, **out, **p.options)


def share_buffer(p: Plan, device) -> torch.Tensor:
    """Scratch [shares, n, K] for the shares' sums."""
    size = p.shares * p.n * p.K
    return scratch(device, "weight gradient shares", block(size, 1 << 62))[:size].view(p.shares, p.n, p.K)


def weight_gradient(dy, x, rows, dW, accumulate) -> None:
    """dW [n, K] float32 from dy [N, O] (rows may be strided) and x [N, K]; rows int32 [n] or None for all O.

    Raises:
        ValueError: a shape or stride that does not fit.
    """
    dy, rows = checked_chosen("weight_gradient", dy, x, rows, {"dW": dW})
    p = plan(dy.dtype, dy.shape[0], *dW.shape, largest_tile(rows, accumulate))
    if p.n == 0:
        return
    given = family(p, dy, x, rows)
    if p.shares == 1:
        launch_product(p, given, dW, accumulate)
        return
    partial = share_buffer(p, dy.device)
    launch_product(p, given, partial, False)
    out = dict(dW=dW, dW_stride=dW.stride(0), ACCUMULATE=accumulate)
    launch(dynadapt_weight_gradient_sum, p.sum_grid, given, partial=partial, **out, num_warps=4)


def weight_gradient_update(dy, x, rows, weight, state, rule, lr, skipped) -> None:
    """One step of rows ``rows`` (int32 [n]; None: all) of weight [O, K]: ``weight_gradient`` and the rule's update of
    state [n, K].

    Raises:
        ValueError: a shape or stride that does not fit, or a tensor missing that the rule needs.
    """
    op = "weight_gradient_update"
    rule.check_fused(op)
    state.check_fused(op, "state", rule)
    if tuple(weight.shape) != (dy.shape[1], x.shape[1]) or weight.stride(1) != 1:
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)} and strides {weight.stride()}, accepted is "
            f"[{dy.shape[1]}, {x.shape[1]}], 1 along its columns"
        )
    source, gathering = checked_chosen(op, dy, x, rows, {"state.master": state.master})
    epilogue.check_layout(op, "state", state, tuple(state.master.shape), packed=True)
    p = plan(dy.dtype, dy.shape[0], *state.master.shape, largest_tile(gathering, True))
    if p.n == 0:
        return
    who = dict(working=weight, working_stride=weight.stride(0), lr=lr, skipped=skipped, counters=epilogue.counters(dy.device, 1))
    given = family(p, source, x, gathering) | who | epilogue.tensors(state) | epilogue.hyper(rule)
    flags = dict(CHOSEN=rows is not None, **epilogue.flags(rule, state, weight))
    chosen = weight if rows is None else rows
    if p.shares == 1:
        elements = epilogue.elements(p.options["num_warps"])
        launch(dynadapt_weight_gradient_update, (p.tiles,), given | {"rows": chosen}, **flags, ELEMENTS=elements, **p.options)
        return
    partial = share_buffer(p, dy.device)
    launch_product(p, given, partial, False)
    given |= dict(rows=chosen, partial=partial)
    launch(dynadapt_weight_gradient_update_sum, p.sum_grid, given, **flags, ELEMENTS=SUM_BLOCK, num_warps=4)


@triton.jit(do_not_specialize=("N",))
def dynadapt_row_squares(x, out, N, x_stride, K: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
    """out [N] = |x_m|^2. Grid (blocks of BT tokens,)."""
    wait_for_previous()
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    row = t.to(tl.int64)[:, None] * x_stride
    total = tl.zeros([BT], tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        v = tl.load(x + row + k[None, :], mask=(t < N)[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)  # [BT, BK]
        total += tl.sum(v * v, 1)
    tl.store(out + t, total, mask=t < N)


@triton.jit(do_not_specialize=("N",))
def dynadapt_row_scores(dy, squares, out, N, O, dy_stride, ROOT: tl.constexpr, TOKENS: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr):
    """out [blocks of tokens, O] = sum of dy^2 |x|^2, or its root. Grid (column blocks, blocks of TOKENS tokens)."""
    wait_for_previous()
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    begin = tl.program_id(1) * TOKENS
    total = tl.zeros([BO], tl.float32)
    for i in range(0, TOKENS, BT):
        t = begin + i + tl.arange(0, BT)
        mask = (t < N)[:, None] & (o < O)[None, :]
        v = tl.load(dy + t.to(tl.int64)[:, None] * dy_stride + o[None, :], mask=mask, other=0.0).to(tl.float32)  # [BT, BO]
        w = tl.load(squares + t, mask=t < N, other=0.0)
        total += tl.sum(v * v * w[:, None], 0)
    if ROOT:
        total = tl.sqrt(total)
    tl.store(out + tl.program_id(1).to(tl.int64) * O + o, total, mask=o < O)


@triton.jit(do_not_specialize=("blocks",))
def dynadapt_row_scores_sum(partial, out, blocks, O, BB: tl.constexpr, BO: tl.constexpr):
    """out [O] = root of the sum of partial [blocks, O]. Grid (column blocks,)."""
    wait_for_previous()
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    total = tl.zeros([BO], tl.float32)
    for b0 in range(0, blocks, BB):
        b = b0 + tl.arange(0, BB)
        mask = (b < blocks)[:, None] & (o < O)[None, :]
        total += tl.sum(tl.load(partial + b.to(tl.int64)[:, None] * O + o[None, :], mask=mask, other=0.0), 0)
    tl.store(out + o, tl.sqrt(total), mask=o < O)


SQUARES = dict(BT=4, BK=512)
SCORES = dict(BT=32, BO=128)


def row_scores(dy, x, out) -> None:
    """out [O] float32: the orthogonal estimate of each row's gradient norm.

    Raises:
        ValueError: a shape or stride that does not fit.
    """
    (N, O), K = dy.shape, x.shape[1]  # noqa: E741
    if x.shape[0] != N or tuple(out.shape) != (O,):
        raise ValueError(f"row_scores: x has shape {list(x.shape)}, out {list(out.shape)}; accepted are [{N}, any] and [{O}]")
    if dy.stride(1) != 1 or x.stride(1) != 1 or out.stride(0) != 1:
        raise ValueError("row_scores: dy, x or out has a stride other than 1 along its last dimension")
    squares = scratch(dy.device, "row squares", block(N, 1 << 62))
    dynadapt_row_squares[(triton.cdiv(N, SQUARES["BT"]),)](x, squares, N, x.stride(0), K=K, **SQUARES, num_warps=4, **FUSION)
    blocks, columns = triton.cdiv(N, SCORE_TOKENS), triton.cdiv(O, SCORES["BO"])
    single = blocks == 1
    sums = out if single else scratch(dy.device, "row score blocks", block(blocks * O, 1 << 62))
    dynadapt_row_scores[(columns, blocks)](
        dy, squares, sums, N, O, dy.stride(0), ROOT=single, TOKENS=SCORE_TOKENS, **SCORES, num_warps=4, **FUSION
    )
    if not single:
        dynadapt_row_scores_sum[(triton.cdiv(O, 64),)](sums, out, blocks, O, BB=16, BO=64, num_warps=4, **FUSION)


def reason(op: str) -> str:
    if op == "row_scores":
        return "Triton, blocks of tokens, then their sum"
    return "Triton, float32 sums; tokens are split where tiles are few"


TYPES = {
    **dict.fromkeys(("dy", "x", "working"), "*bf16"),
    **dict.fromkeys(("dW", "partial", "squares", "out", *epilogue.STATE), "*fp32"),
    "rows": "*i32",
    **epilogue.TYPES,
}


def _variants():
    compiled = lambda name, kernel, constexprs, **more: variant(name, kernel, TYPES, constexprs, **more)  # noqa: E731
    for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for (bm, bn, bt), warps, stages in TILES[dtype]:
            sizes, options = dict(BM=bm, BN=bn, BT=bt, GROUP=GROUP), dict(num_warps=warps, num_stages=stages, tensor_core=short == "bf16")
            for gather in (False, True) if bm * bn == SMALLEST else (False,):
                fixed = dict(GATHER=gather, ACCUMULATE=bm * bn <= LARGEST_READING, **sizes)
                name = f"{bm}x{bn} {'gathered ' if gather else ''}{short}"
                yield compiled(name, dynadapt_weight_gradient, fixed, dtype=short, **options)
                if bm * bn > LARGEST_READING or short != "bf16":
                    continue
                fixed = dict(GATHER=gather, CHOSEN=gather, ELEMENTS=epilogue.elements(warps), **sizes)
                fixed |= epilogue.RULES["momentum"]  # it reads most
                yield compiled(f"{bm}x{bn}{' chosen' if gather else ''} momentum", dynadapt_weight_gradient_update, fixed, **options)
    for rule, flags in epilogue.RULES.items():
        fixed = dict(CHOSEN=True, BLOCK=SUM_BLOCK, ELEMENTS=epilogue.elements(4), **flags)
        yield compiled(f"sum {rule}", dynadapt_weight_gradient_update_sum, fixed)
    yield compiled("sum", dynadapt_weight_gradient_sum, dict(BLOCK=SUM_BLOCK, ACCUMULATE=True))
    yield variant("gather bf16", dynadapt_gather_columns, TYPES | {"out": "*bf16"}, GATHER, loose=("n",))
    yield compiled("squares bf16", dynadapt_row_squares, dict(K=2048, **SQUARES))
    yield compiled("scores bf16", dynadapt_row_scores, dict(ROOT=False, TOKENS=SCORE_TOKENS, **SCORES))
    yield compiled("sum of scores", dynadapt_row_scores_sum, dict(BB=16, BO=64))


VARIANTS: list[Variant] = list(_variants())
