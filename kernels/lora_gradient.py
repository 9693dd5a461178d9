"""Gradients of every stream's adapter: dA = dU^T x and dBt_p = scale u_p^T dy_p, all streams and parts in one launch.

A program owns [BR, BC] values of dA (BC columns of x) or of dBt (BC columns of one part of dy) and walks over the
stream's tokens. Traffic: x and dy are read once, 2 N (K + O) bytes in bfloat16, beside the small u and dU; at
2 N R (P K + O) operations that is about R operations a byte, so the kernel is bound by memory and its tiles are chosen
for loads: rows of 128 or 256 bytes, three stages in flight. The product is formed transposed, x^T dU, because the wide
side must be the one of at least 64 rows that wgmma takes; the narrow side is the rank, padded to 16.

Tokens are summed in chunks of 512, chunk after chunk. Where streams times tiles leave multiprocessors idle, each chunk
gets programs of its own and a second launch adds the chunks, in the same order, and only then scales the sum, as the one
launch does: one or two launches, the same bits, so that a stream's gradient does not depend on how many others are in the
call.

lora_gradient_update applies the gradient where it stands, in registers (epilogue.py): no gradient in memory, master and
working copy are read and written once. Where the tokens are split, the launch that adds the chunks does it.

Where parts have ranks and scales of their own (EQUAL is false), a tile of dBt looks up its part's; rows beyond its rank get the
gradient zero. Where slots have their own, too, the gradient is that of slot_adapters.py.

Not fused: dU, which the backward of the layer's input needs anyway (linear_backward writes it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from dynadapt.ops.linear import each_part
from dynadapt.ops.slot_adapters import SlotAdapters

from . import epilogue, slot_adapters
from .common import Variant, block, launch, scratch, variant, wait_for_previous
from .epilogue import apply_update, report
from .tiles import locate, part_columns, three
from .token_sums import put, tile_times_left

SMS = 132  # multiprocessors of an H200; with fewer programs than this the tokens are split
CHUNK = 512  # tokens of one partial sum
SUM_BLOCK = 1024
MAX_PARTS = 3
LENGTHS = ("T", "streams", "chunks")  # vary from call to call: never a reason to compile again


@triton.jit
def tile_of_a(
    pid, x, dU, tokens, K: tl.constexpr, W: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, CHUNK: tl.constexpr
):
    """(gradient [BC, BR], its columns [BC, 1] in the stream's dA [W, K], which of them exist, (first row, where rows end, what
    is between two rows))."""
    BLOCKS: tl.constexpr = (W + BR - 1) // BR
    r0 = pid % BLOCKS * BR  # row blocks of one column tile are neighbours: x comes from L2 after the first
    c0 = pid // BLOCKS * BC
    gradient = tile_times_left(dU, x, tokens, (r0, W), (c0, K), BR, BC, BT, CHUNK)
    c = c0 + tl.arange(0, BC)[:, None]
    return gradient, c, c < K, (r0, W, K)


@triton.jit
def scale_of(part, scales):
    """The scale of part 0, 1 or 2, or of a block of such numbers."""
    s0, s1, s2 = scales
    return tl.where(part == 0, s0, tl.where(part == 1, s1, s2))


@triton.jit
def scaled(total, offset, scales, sizes, EQUAL: tl.constexpr):
    """Sums at ``offset`` of a dBt [R, O], times the scales of their parts."""
    if EQUAL:
        return total * scales[0]
    O0, O1, O2 = sizes
    column = offset % (O0 + O1 + O2)
    return total * scale_of((column >= O0).to(tl.int32) + (column >= O0 + O1).to(tl.int32), scales)


@triton.jit
def tile_of_b(
    pid,
    dy,
    u,
    tokens,
    sizes,
    width,
    scales,
    R: tl.constexpr,
    R0: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    EQUAL: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The same of the stream's dBt [R, O], rows ``width`` apart; no tile spans two parts."""
    O0, O1, O2 = sizes
    BLOCKS: tl.constexpr = (R + BR - 1) // BR
    r0 = pid % BLOCKS * BR
    part, start, size, c0 = locate(pid // BLOCKS, O0, O1, O2, BC)
    c0, c_end = start + c0, start + size
    if EQUAL:
        gradient = scales[0] * tile_times_left(u, dy, tokens, (part * R + r0, part * R + R), (c0, c_end), BR, BC, BT, CHUNK)
    else:
        row, rank = part_columns(part, R0, R1, R2)
        times = tile_times_left(u, dy, tokens, (row + r0, row + rank), (c0, c_end), BR, BC, BT, CHUNK)
        gradient = scale_of(part, scales) * times
    c = c0 + tl.arange(0, BC)[:, None]
    return gradient, c, c < c_end, (r0, R, width)


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient(
    dy,
    x,
    u,
    dU,
    slots,
    dA,
    dBt,
    partial,
    scale0,
    scale1,
    scale2,
    T,
    streams,
    chunks,
    dy_stride,
    x_stride,
    u_stride,
    dU_stride,
    dA_stride,
    dBt_stride,
    O0,
    O1,
    O2,
    b_row,
    K: tl.constexpr,
    R: tl.constexpr,
    R0: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    EQUAL: tl.constexpr,
    W: tl.constexpr,
    BRA: tl.constexpr,
    BRB: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid (tiles of dA then of dBt, streams, chunks or 1). SPLIT: each chunk's share, not scaled yet, goes to partial
    [chunks, S, W K + R O]."""
    wait_for_previous()
    pid, s, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    PROGRAMS_A: tl.constexpr = (W + BRA - 1) // BRA * ((K + BC - 1) // BC)
    first, last, scales, width = 0, chunks, (scale0, scale1, scale2), b_row
    if SPLIT:
        first, last, scales, width = split, split + 1, (1.0, 1.0, 1.0), O0 + O1 + O2
        size = W * K + R * (O0 + O1 + O2)
        share = partial + (split * streams + s).to(tl.int64) * size
        a, b = share, share + W * K
    else:
        slot = tl.load(slots + s).to(tl.int64)
        a, b = dA + slot * dA_stride, dBt + slot * dBt_stride
    tokens = (s.to(tl.int64) * T, T, first, last)
    if pid < PROGRAMS_A:
        value, columns, live, rows = tile_of_a(pid, (x, x_stride), (dU, dU_stride), tokens, K, W, BRA, BC, BT, CHUNK)
        put(a, columns, live, rows, value, ACCUMULATE)
    else:  # other names: the two tiles may differ in shape
        value_b, columns_b, live_b, rows_b = tile_of_b(
            pid - PROGRAMS_A, (dy, dy_stride), (u, u_stride), tokens, (O0, O1, O2), width, scales, R, R0, R1, R2, EQUAL, BRB, BC, BT, CHUNK
        )
        put(b, columns_b, live_b, rows_b, value_b, ACCUMULATE)


@triton.jit
def sum_of_chunks(partial, s, offset, mask, streams, chunks, size):
    total = tl.zeros_like(offset).to(tl.float32)
    for chunk in range(0, chunks):
        total += tl.load(partial + (chunk * streams + s).to(tl.int64) * size + offset, mask=mask, other=0.0)
    return total


@triton.jit
def placed(offset, sizes, row):
    """Where what is at ``offset`` of a packed dBt [R, O] is where rows are ``row`` apart."""
    O0, O1, O2 = sizes
    return offset // (O0 + O1 + O2) * row + offset % (O0 + O1 + O2)


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient_sum(
    partial,
    slots,
    dA,
    dBt,
    scale0,
    scale1,
    scale2,
    streams,
    chunks,
    dA_stride,
    dBt_stride,
    size_a,
    size_b,
    O0,
    O1,
    O2,
    b_row,
    EQUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid (blocks of dA then of dBt, streams)."""
    wait_for_previous()
    pid, s = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + s).to(tl.int64)
    blocks_a = tl.cdiv(size_a, BLOCK)
    if pid < blocks_a:
        offset = pid * BLOCK + tl.arange(0, BLOCK)[:, None]
        value = sum_of_chunks(partial, s, offset, offset < size_a, streams, chunks, size_a + size_b)
        put(dA + slot * dA_stride, offset, offset < size_a, (0, 1, 0), value, ACCUMULATE)
    else:
        offset = (pid - blocks_a) * BLOCK + tl.arange(0, BLOCK)[:, None]
        value = sum_of_chunks(partial + size_a, s, offset, offset < size_b, streams, chunks, size_a + size_b)
        value = scaled(value, offset, (scale0, scale1, scale2), (O0, O1, O2), EQUAL)
        put(dBt + slot * dBt_stride, placed(offset, (O0, O1, O2), b_row), offset < size_b, (0, 1, 0), value, ACCUMULATE)


@triton.jit
def state_of(slot, master, first, prior, stat, prior_rate, working, master_stride, first_stride, working_stride):
    """The state of ``apply_update`` of the adapter in ``slot``."""
    return master + slot * master_stride, first + slot * first_stride, prior, stat, prior_rate, working + slot * working_stride


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient_update(
    dy,
    x,
    u,
    dU,
    slots,
    moving,
    lr,
    skipped,
    counters,
    a_master,
    a_first,
    a_prior,
    a_stat,
    a_prior_rate,
    a_working,
    b_master,
    b_first,
    b_prior,
    b_stat,
    b_prior_rate,
    b_working,
    scale0,
    scale1,
    scale2,
    decay,
    momentum,
    eps,
    T,
    chunks,
    dy_stride,
    x_stride,
    u_stride,
    dU_stride,
    O0,
    O1,
    O2,
    b_row,
    a_master_stride,
    a_first_stride,
    a_working_stride,
    b_master_stride,
    b_first_stride,
    b_working_stride,
    K: tl.constexpr,
    R: tl.constexpr,
    R0: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    EQUAL: tl.constexpr,
    W: tl.constexpr,
    BRA: tl.constexpr,
    BRB: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    RMS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    RATE: tl.constexpr,
    WORKING: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Grid (tiles of A then of Bt, streams)."""
    wait_for_previous()
    pid, s = tl.program_id(0), tl.program_id(1)
    PROGRAMS_A: tl.constexpr = (W + BRA - 1) // BRA * ((K + BC - 1) // BC)
    if (tl.load(moving + s) != 0) & (tl.load(skipped + s) == 0):
        slot = tl.load(slots + s).to(tl.int64)
        rate = tl.load(lr + slot)
        hyper = (decay, momentum, eps)
        a = state_of(slot, a_master, a_first, a_prior, a_stat, a_prior_rate, a_working, a_master_stride, a_first_stride, a_working_stride)
        b = state_of(slot, b_master, b_first, b_prior, b_stat, b_prior_rate, b_working, b_master_stride, b_first_stride, b_working_stride)
        tokens = (s.to(tl.int64) * T, T, 0, chunks)
        if pid < PROGRAMS_A:
            g, columns, live, rows = tile_of_a(pid, (x, x_stride), (dU, dU_stride), tokens, K, W, BRA, BC, BT, CHUNK)
            bad = apply_update(g, (columns, columns, live), rows, a, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        else:
            scales = (scale0, scale1, scale2)
            g_b, columns_b, live_b, rows_b = tile_of_b(
                pid - PROGRAMS_A,
                (dy, dy_stride),
                (u, u_stride),
                tokens,
                (O0, O1, O2),
                b_row,
                scales,
                R,
                R0,
                R1,
                R2,
                EQUAL,
                BRB,
                BC,
                BT,
                CHUNK,
            )
            bad = apply_update(g_b, (columns_b, columns_b, live_b), rows_b, b, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        report(counters, skipped, s, bad)


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient_update_sum(
    partial,
    slots,
    moving,
    lr,
    skipped,
    counters,
    a_master,
    a_first,
    a_prior,
    a_stat,
    a_prior_rate,
    a_working,
    b_master,
    b_first,
    b_prior,
    b_stat,
    b_prior_rate,
    b_working,
    scale0,
    scale1,
    scale2,
    decay,
    momentum,
    eps,
    streams,
    chunks,
    size_a,
    size_b,
    O0,
    O1,
    O2,
    b_row,
    a_master_stride,
    a_first_stride,
    a_working_stride,
    b_master_stride,
    b_first_stride,
    b_working_stride,
    EQUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    RMS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    RATE: tl.constexpr,
    WORKING: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Grid (blocks of A then of Bt, streams)."""
    wait_for_previous()
    pid, s = tl.program_id(0), tl.program_id(1)
    if (tl.load(moving + s) != 0) & (tl.load(skipped + s) == 0):
        slot = tl.load(slots + s).to(tl.int64)
        rate = tl.load(lr + slot)
        hyper = (decay, momentum, eps)
        a = state_of(slot, a_master, a_first, a_prior, a_stat, a_prior_rate, a_working, a_master_stride, a_first_stride, a_working_stride)
        b = state_of(slot, b_master, b_first, b_prior, b_stat, b_prior_rate, b_working, b_master_stride, b_first_stride, b_working_stride)
        blocks_a = tl.cdiv(size_a, BLOCK)
        if pid < blocks_a:
            offset = pid * BLOCK + tl.arange(0, BLOCK)[:, None]
            rows = (offset, offset, offset < size_a)
            g = sum_of_chunks(partial, s, offset, offset < size_a, streams, chunks, size_a + size_b)
            bad = apply_update(g, rows, (0, 1, 0), a, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        else:
            offset = (pid - blocks_a) * BLOCK + tl.arange(0, BLOCK)[:, None]
            at = placed(offset, (O0, O1, O2), b_row)
            rows = (at, at, offset < size_b)
            g = sum_of_chunks(partial + size_a, s, offset, offset < size_b, streams, chunks, size_a + size_b)
            g = scaled(g, offset, (scale0, scale1, scale2), (O0, O1, O2), EQUAL)
            bad = apply_update(g, rows, (0, 1, 0), b, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        report(counters, skipped, s, bad)


@dataclass(frozen=True)
class Plan:
    """Sizes of one call and how it is cut into programs."""

    streams: int
    T: int
    sizes: tuple[int, int, int]
    constexprs: dict
    options: dict

    @property
    def chunks(self) -> int:
        return max(1, triton.cdiv(self.T, self.constexprs["CHUNK"]))

    @property
    def elements(self) -> tuple[int, int]:
        """Values of one stream's dA and dBt."""
        c = self.constexprs
        return c["W"] * c["K"], c["R"] * sum(self.sizes)

    @property
    def programs(self) -> int:
        c = self.constexprs
        columns = sum(triton.cdiv(size, c["BC"]) for size in self.sizes)
        return triton.cdiv(c["W"], c["BRA"]) * triton.cdiv(c["K"], c["BC"]) + triton.cdiv(c["R"], c["BRB"]) * columns

    @property
    def split(self) -> bool:
        return self.chunks > 1 and self.streams * self.programs < SMS

    @property
    def sum_grid(self) -> tuple[int, int]:
        return sum(triton.cdiv(n, SUM_BLOCK) for n in self.elements), self.streams


def plan(dtype: torch.dtype, streams: int, T: int, K: int, part_sizes, ranks, equal: bool = True, most: int | None = None) -> Plan:
    """bfloat16: 128 columns where that gives every multiprocessor two programs, else 64; float32 (no tensor cores):
    small tiles that fit in registers. ``ranks``: every part's, or each one's; ``equal``: so are their scales; ``most``: rows of Bt."""
    sizes = three(part_sizes)
    ranks = [ranks] * len(part_sizes) if isinstance(ranks, int) else ranks
    width, rank = sum(ranks), max(ranks) if most is None else most
    wide = dtype == torch.bfloat16
    rows = 128 if wide else 32
    own = dict(zip(("R0", "R1", "R2"), three(ranks)), EQUAL=equal)
    constexprs = dict(K=K, R=rank, **own, W=width, BRA=block(width, rows), BRB=block(rank, rows), BC=64, BT=64 if wide else 16, CHUNK=CHUNK)
    if wide and streams * (triton.cdiv(K, 128) + sum(triton.cdiv(size, 128) for size in sizes)) >= 2 * SMS:
        constexprs["BC"] = 128
    warps = 8 if constexprs["BC"] * constexprs["BRA"] > 64 * 64 else 4
    return Plan(streams, T, sizes, constexprs, dict(num_warps=warps, num_stages=3 if wide else 2))


def checked_plan(op: str, dy, x, u, dU, part_sizes, scale, slots, a, bt) -> Plan:
    """The plan of a call whose adapter tensors are ``a`` [slots, sum R_p, K] and ``bt`` [slots, R, O], packed within a slot."""
    (n, out), k, rank, streams = dy.shape, x.shape[1], bt.shape[1], slots.shape[0]
    ranks = [own for _, _, own, _ in each_part(scale, part_sizes, rank)]
    width = sum(ranks)
    if not 1 <= len(part_sizes) <= MAX_PARTS:
        raise ValueError(f"{op}: part_sizes has {len(part_sizes)} entries, accepted is 1 to {MAX_PARTS}")
    if sum(part_sizes) != out:
        raise ValueError(f"{op}: part_sizes add up to {sum(part_sizes)}, accepted is the width of dy, {out}")
    if streams == 0 or n % streams:
        raise ValueError(f"{op}: slots has {streams} entries for {n} rows, accepted is a divisor")
    for name, tensor, shape in (
        ("x", x, (n, k)),
        ("u", u, (n, width)),
        ("dU", dU, (n, width)),
        ("a", a, (a.shape[0], width, k)),
        ("bt", bt, (a.shape[0], rank, out)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, accepted is {list(shape)}")
    for name, tensor in (("dy", dy), ("x", x), ("u", u), ("dU", dU)):
        if tensor.stride(1) != 1:
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}, accepted is 1 along its columns")
    for name, tensor in (("a", a), ("bt", bt)):
        if tensor.stride(2) != 1 or name == "a" and tensor.stride(1) != k:
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}, accepted is packed within a slot")
    return plan(dy.dtype, streams, n // streams, k, part_sizes, ranks, not isinstance(scale, (list, tuple)), rank)


def family(p: Plan, dy, x, u, dU, scale, slots) -> dict:
    """What the launches of a call take, by name."""
    strides = dict(dy_stride=dy.stride(0), x_stride=x.stride(0), u_stride=u.stride(0), dU_stride=dU.stride(0))
    lengths = dict(T=p.T, streams=p.streams, chunks=p.chunks)
    sizes = dict(zip(("O0", "O1", "O2", "size_a", "size_b"), (*p.sizes, *p.elements)))
    scales = [pair[1] for pair in scale] if isinstance(scale, (list, tuple)) else [scale]
    own = dict(zip(("scale0", "scale1", "scale2"), map(float, three(scales))))
    return dict(dy=dy, x=x, u=u, dU=dU, slots=slots, **own, **lengths, **strides, **sizes, **p.constexprs)


def by_threes(scale, part_sizes, rank: int):
    """(rows of u and A, columns of dy and Bt, sizes, scale) of each three parts: as many as a launch takes."""
    parts, three_of = list(each_part(scale, part_sizes, rank)), MAX_PARTS
    for lo in range(0, len(parts), three_of):
        own = parts[lo : lo + three_of]
        rows, columns = (slice(own[0][i].start, own[-1][i].stop) for i in (0, 1))
        scales = scale[lo : lo + three_of] if isinstance(scale, (list, tuple)) else scale
        yield rows, columns, list(part_sizes[lo : lo + three_of]), scales


def cut(state, view):
    """The state of some of a stream's rows or columns."""
    return replace(state, **{n: view(getattr(state, n)) for n in (*epilogue.STATE, "working") if getattr(state, n) is not None})


def launch_gradient(p: Plan, given: dict, dA, dBt, partial, accumulate: bool) -> None:
    """The token walk; with ``partial`` every chunk for itself."""
    split = partial is not None
    if split:
        dA, dBt, accumulate = partial, partial, False
    tensors = dict(dA=dA, dBt=dBt, partial=partial if split else dA, dA_stride=dA.stride(0), dBt_stride=dBt.stride(0))
    tensors["b_row"] = sum(p.sizes) if split else dBt.stride(1)
    grid = (p.programs, p.streams, p.chunks if split else 1)
    launch(dynadapt_lora_gradient, grid, given | tensors, SPLIT=split, ACCUMULATE=accumulate, **p.options)


def chunk_buffer(p: Plan, device) -> torch.Tensor:
    """Scratch [chunks S (P R K + R O)], by powers of two so that lengths share it."""
    return scratch(device, "lora gradient chunks", block(p.chunks * p.streams * sum(p.elements), 1 << 62))


def lora_gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, accumulate) -> None:
    """dA = dU^T x [slots, P R, K]; dBt_p = scale u_p^T dy_p [slots, R, O]; only ``slots`` are touched. See
    ``dynadapt.ops.lora_gradient`` for a ``scale`` of pairs.

    Raises:
        ValueError: a shape or stride that does not fit.
    """
    if isinstance(scale, SlotAdapters):
        return slot_adapters.gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, accumulate)
    if len(part_sizes) > MAX_PARTS:
        for rows, columns, sizes, own in by_threes(scale, part_sizes, dBt.shape[1]):
            given = dy[:, columns], x, u[:, rows], dU[:, rows]
            lora_gradient(*given, sizes, own, slots, dA[:, rows], dBt[:, :, columns], accumulate)
        return None
    p = checked_plan("lora_gradient", dy, x, u, dU, part_sizes, scale, slots, dA, dBt)
    given = family(p, dy, x, u, dU, scale, slots)
    partial = chunk_buffer(p, dy.device) if p.split else None
    launch_gradient(p, given, dA, dBt, partial, accumulate)
    if partial is not None:
        out = dict(dA=dA, dBt=dBt, dA_stride=dA.stride(0), dBt_stride=dBt.stride(0), b_row=dBt.stride(1))
        sums = dict(partial=partial, BLOCK=SUM_BLOCK, ACCUMULATE=accumulate)
        launch(dynadapt_lora_gradient_sum, p.sum_grid, given, **out, **sums, num_warps=4)
    return None


def lora_gradient_update(dy, x, u, dU, part_sizes, scale, slots, moving, a, bt, rule, lr, skipped) -> None:
    """One step of every stream's adapter: ``lora_gradient`` and the rule's update of a [slots, P R, K] and bt [slots, R, O].

    Raises:
        ValueError: a shape or stride that does not fit, or a tensor missing that the rule needs.
    """
    op = "lora_gradient_update"
    if len(part_sizes) > MAX_PARTS:
        for rows, columns, sizes, own in by_threes(scale, part_sizes, bt.master.shape[1]):
            state = cut(a, lambda t: t[..., rows, :]), cut(bt, lambda t: t[..., columns])  # noqa: B023
            given = dy[:, columns], x, u[:, rows], dU[:, rows]
            lora_gradient_update(*given, sizes, own, slots, moving, *state, rule, lr, skipped)
        return
    p = checked_plan(op, dy, x, u, dU, part_sizes, scale, slots, a.master, bt.master)
    rule.check_fused(op)
    for name, state in (("a", a), ("bt", bt)):
        state.check_fused(op, name, rule)
        epilogue.check_layout(op, name, state, tuple(state.master.shape[1:]), packed=name == "a")
    flags = epilogue.flags(rule, a, a.working)
    if epilogue.flags(rule, bt, bt.working) != flags:
        raise ValueError(f"{op}: a and bt must both have working and prior_rate, or neither")
    if any(t is not None and t.stride(-2) != bt.master.stride(-2) for t in (bt.working, bt.first, bt.prior, bt.stat, bt.prior_rate)):
        raise ValueError(f"{op}: bt has tensors whose rows are not equally far apart, accepted is {bt.master.stride(-2)} as of its master")
    who = dict(moving=moving, b_row=bt.master.stride(-2), lr=lr, skipped=skipped, counters=epilogue.counters(dy.device, p.streams))
    given = family(p, dy, x, u, dU, scale, slots) | who | epilogue.hyper(rule)
    for prefix, state in (("a", a), ("b", bt)):
        tensors = {**epilogue.tensors(state), "working": state.master if state.working is None else state.working}
        given |= {f"{prefix}_{name}": tensor for name, tensor in tensors.items()}
        given |= {f"{prefix}_{name}_stride": tensors[name].stride(0) for name in ("master", "working")}
        given[f"{prefix}_first_stride"] = 0 if state.first is None else state.first.stride(0)
    if not p.split:
        elements = epilogue.elements(p.options["num_warps"])
        launch(dynadapt_lora_gradient_update, (p.programs, p.streams), given, **flags, ELEMENTS=elements, **p.options)
        return
    partial = chunk_buffer(p, dy.device)
    launch_gradient(p, given, None, None, partial, False)
    sums = dict(partial=partial, BLOCK=SUM_BLOCK, ELEMENTS=SUM_BLOCK)
    launch(dynadapt_lora_gradient_update_sum, p.sum_grid, given, **sums, **flags, num_warps=4)


def reason(op: str) -> str:
    return f"Triton, all streams and parts in one launch; two where tokens are split to fill {SMS} multiprocessors"


TYPES = {
    **dict.fromkeys(("dy", "x", "u", "dU", "a_working", "b_working"), "*bf16"),
    **dict.fromkeys(("dA", "dBt", "partial"), "*fp32"),
    **{f"{prefix}_{name}": "*fp32" for prefix in "ab" for name in epilogue.STATE},
    **{"slots": "*i32", "moving": "*i32", **dict.fromkeys(("scale0", "scale1", "scale2"), "fp32")},
    **epilogue.TYPES,
}
SHAPES = {  # streams, K, parts, rank
    "one stream r16": (1, 2048, (2048, 512, 512), 16),
    "64 streams r16": (64, 2048, (2048, 512, 512), 16),
    "64 streams r64": (64, 4096, (14336, 14336), 64),
    "64 streams r128": (64, 4096, (4096, 1024, 1024), 128),
}


def _variants():
    compiled = lambda name, kernel, constexprs, **more: variant(name, kernel, TYPES, constexprs, **more)  # noqa: E731
    whole, fp32 = dict(SPLIT=False, ACCUMULATE=False), "64 streams r64"
    for name, (streams, *sizes) in SHAPES.items():
        p = plan(torch.bfloat16, streams, 512, *sizes)
        yield compiled(f"{name} bf16", dynadapt_lora_gradient, {**p.constexprs, **whole}, tensor_core=True, **p.options)
    p = plan(torch.float32, SHAPES[fp32][0], 512, *SHAPES[fp32][1:])
    yield compiled("r64 fp32", dynadapt_lora_gradient, {**p.constexprs, **whole}, dtype="fp32", **p.options)
    p = plan(torch.bfloat16, 1, 512, *SHAPES["one stream r16"][1:])
    split = {**p.constexprs, **whole, "SPLIT": True}
    own = plan(torch.bfloat16, 64, 512, 2048, (2048, 512, 512), (16, 0, 64), equal=False)
    yield compiled("64 streams ranks 16 0 64 bf16", dynadapt_lora_gradient, {**own.constexprs, **whole}, tensor_core=True, **own.options)
    yield compiled("one stream r16 split bf16", dynadapt_lora_gradient, split, tensor_core=True, **p.options)
    yield compiled("sum", dynadapt_lora_gradient_sum, dict(BLOCK=SUM_BLOCK, ACCUMULATE=True, EQUAL=True))
    for rule, flags in epilogue.RULES.items():
        for streams, rank in ((1, 16), (64, 64)) if rule == "momentum" else ((64, 16),):  # momentum reads most
            p = plan(torch.bfloat16, streams, 512, 2048, (8192, 8192), rank)
            fixed = {**p.constexprs, **flags, "ELEMENTS": epilogue.elements(p.options["num_warps"])}
            yield compiled(f"{streams} streams r{rank} {rule}", dynadapt_lora_gradient_update, fixed, tensor_core=True, **p.options)
        yield compiled(
            f"sum {rule}", dynadapt_lora_gradient_update_sum, {**flags, "BLOCK": SUM_BLOCK, "ELEMENTS": epilogue.elements(4), "EQUAL": True}
        )


# Tiles are chosen for sm_90; sm_80 spills six registers in one of them.
VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=24)) for v in _variants()]
