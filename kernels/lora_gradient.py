"""Gradients of every stream's adapter: dA = dU^T x and dBt_p = scale u_p^T dy_p, all streams and parts in one launch.

A program owns [BR, BC] values of dA (BC columns of x) or of dBt (BC columns of one part of dy) and walks over the
stream's tokens. Traffic: x and dy are read once, 2 N (K + O) bytes in bfloat16, beside the small u and dU; at
2 N R (P K + O) operations that is about R operations a byte, so the kernel is bound by memory and its tiles are chosen
for loads: rows of 128 or 256 bytes, three stages in flight. The product is formed transposed, x^T dU, because the wide
side must be the one of at least 64 rows that wgmma takes; the narrow side is the rank, padded to 16.

Tokens are summed in chunks of 512, chunk after chunk. Where streams times tiles leave multiprocessors idle, each chunk
gets programs of its own and a second launch adds the chunks, in the same order: one or two launches, the same bits, so
that a stream's gradient does not depend on how many others are in the call.

lora_gradient_update applies the gradient where it stands, in registers (epilogue.py): no gradient in memory, master and
working copy are read and written once. Where the tokens are split, the launch that adds the chunks does it.

Not fused: dU, which the backward of the layer's input needs anyway (linear_backward writes it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from . import epilogue
from .common import FUSION, Variant, block, dot, scratch
from .epilogue import apply_update, report

SMS = 132  # multiprocessors of an H200; with fewer programs than this the tokens are split
CHUNK = 512  # tokens of one partial sum
SUM_BLOCK = 1024
MAX_PARTS = 3
LENGTHS = ("T", "streams", "chunks")  # vary from call to call: never a reason to compile again


@triton.jit
def tile_times_left(
    left,
    tile,
    row0,
    first,
    last,
    T,
    left_stride,
    tile_stride,
    left_lo,
    left_hi,
    lo,
    hi,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """tile[:, lo:hi]^T left[:, left_lo:left_hi] over chunks first..last of the tokens row0..row0+T; [BC, BR]."""
    r = left_lo + tl.arange(0, BR)
    c = lo + tl.arange(0, BC)
    total = tl.zeros([BC, BR], tl.float32)
    for chunk in range(first, last):
        begin, end = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, T)
        acc = tl.zeros([BC, BR], tl.float32)
        for t0 in range(begin, end, BT):
            t = t0 + tl.arange(0, BT)
            live = (t < end)[:, None]
            row = (row0 + t).to(tl.int64)[:, None]
            z = tl.load(tile + row * tile_stride + c[None, :], mask=live & (c < hi)[None, :], other=0.0)  # [BT, BC]
            w = tl.load(left + row * left_stride + r[None, :], mask=live & (r < left_hi)[None, :], other=0.0)  # [BT, BR]
            acc = dot(tl.trans(z), w, acc)
        total += acc
    return total


@triton.jit
def part_columns(tile, O0, O1, O2, BC: tl.constexpr):
    """(part, first column, end of the part) of the tile-th column tile, none of which spans two parts."""
    tiles0 = tl.cdiv(O0, BC)
    tiles1 = tiles0 + tl.cdiv(O1, BC)
    part = (tile >= tiles0).to(tl.int32) + (tile >= tiles1).to(tl.int32)
    start = tl.where(part == 0, 0, tl.where(part == 1, O0, O0 + O1))
    size = tl.where(part == 0, O0, tl.where(part == 1, O1, O2))
    before = tl.where(part == 0, 0, tl.where(part == 1, tiles0, tiles1))
    return part, start + (tile - before) * BC, start + size


@triton.jit
def gradient_tile(
    dy,
    x,
    u,
    dU,
    pid,
    s,
    first,
    last,
    scale,
    T,
    dy_stride,
    x_stride,
    u_stride,
    dU_stride,
    O0,
    O1,
    O2,
    K: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    BRA: tl.constexpr,
    BRB: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    ON_A: tl.constexpr,
):
    """(gradient [BC, BR], its columns [BC, 1] in the stream's dA [W, K] or dBt [R, O] and which of them exist, its first
    row, where rows end, what is between two rows)."""
    row0 = s.to(tl.int64) * T
    if ON_A:
        BLOCKS_A: tl.constexpr = (W + BRA - 1) // BRA
        r0 = pid % BLOCKS_A * BRA  # row blocks of one column tile are neighbours: x comes from L2 after the first
        lo = pid // BLOCKS_A * BC
        gradient = tile_times_left(dU, x, row0, first, last, T, dU_stride, x_stride, r0, W, lo, K, BRA, BC, BT, CHUNK)
        c = lo + tl.arange(0, BC)[:, None]
        return gradient, c, c < K, r0, W, K
    else:
        BLOCKS_B: tl.constexpr = (R + BRB - 1) // BRB
        r0 = pid % BLOCKS_B * BRB
        part, lo, hi = part_columns(pid // BLOCKS_B, O0, O1, O2, BC)
        gradient = scale * tile_times_left(
            u, dy, row0, first, last, T, u_stride, dy_stride, part * R + r0, part * R + R, lo, hi, BRB, BC, BT, CHUNK
        )
        c = lo + tl.arange(0, BC)[:, None]
        return gradient, c, c < hi, r0, R, O0 + O1 + O2


@triton.jit
def put(out, columns, live, r0, rows, stride, value, ACCUMULATE: tl.constexpr):
    r = r0 + tl.arange(0, value.shape[1])[None, :]
    offset, mask = columns + r * stride, live & (r < rows)
    if ACCUMULATE:
        value += tl.load(out + offset, mask=mask, other=0.0)
    tl.store(out + offset, value, mask=mask)


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
    scale,
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
    K: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    BRA: tl.constexpr,
    BRB: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid (tiles of dA then of dBt, streams, chunks or 1). SPLIT: each chunk's share goes to partial [chunks, S, W K + R O]."""
    pid, s, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    PROGRAMS_A: tl.constexpr = (W + BRA - 1) // BRA * ((K + BC - 1) // BC)
    first, last = 0, chunks
    if SPLIT:
        first, last = split, split + 1
        size = W * K + R * (O0 + O1 + O2)
        share = partial + (split * streams + s).to(tl.int64) * size
        a, b = share, share + W * K
    else:
        slot = tl.load(slots + s).to(tl.int64)
        a, b = dA + slot * dA_stride, dBt + slot * dBt_stride
    if pid < PROGRAMS_A:
        value, columns, live, r0, rows, stride = gradient_tile(
            dy,
            x,
            u,
            dU,
            pid,
            s,
            first,
            last,
            scale,
            T,
            dy_stride,
            x_stride,
            u_stride,
            dU_stride,
            O0,
            O1,
            O2,
            K,
            R,
            W,
            BRA,
            BRB,
            BC,
            BT,
            CHUNK,
            True,
        )
        put(a, columns, live, r0, rows, stride, value, ACCUMULATE)
    else:  # other names: the two tiles may differ in shape
        value_b, columns_b, live_b, r0_b, rows_b, stride_b = gradient_tile(
            dy,
            x,
            u,
            dU,
            pid - PROGRAMS_A,
            s,
            first,
            last,
            scale,
            T,
            dy_stride,
            x_stride,
            u_stride,
            dU_stride,
            O0,
            O1,
            O2,
            K,
            R,
            W,
            BRA,
            BRB,
            BC,
            BT,
            CHUNK,
            False,
        )
        put(b, columns_b, live_b, r0_b, rows_b, stride_b, value_b, ACCUMULATE)


@triton.jit
def sum_of_chunks(partial, s, offset, mask, streams, chunks, size):
    total = tl.zeros_like(offset).to(tl.float32)
    for chunk in range(0, chunks):
        total += tl.load(partial + (chunk * streams + s).to(tl.int64) * size + offset, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient_sum(
    partial, slots, dA, dBt, streams, chunks, dA_stride, dBt_stride, size_a, size_b, BLOCK: tl.constexpr, ACCUMULATE: tl.constexpr
):
    """Grid (blocks of dA then of dBt, streams)."""
    pid, s = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + s).to(tl.int64)
    blocks_a = tl.cdiv(size_a, BLOCK)
    if pid < blocks_a:
        offset = pid * BLOCK + tl.arange(0, BLOCK)[:, None]
        value = sum_of_chunks(partial, s, offset, offset < size_a, streams, chunks, size_a + size_b)
        put(dA + slot * dA_stride, offset, offset < size_a, 0, 1, 0, value, ACCUMULATE)
    else:
        offset = (pid - blocks_a) * BLOCK + tl.arange(0, BLOCK)[:, None]
        value = sum_of_chunks(partial + size_a, s, offset, offset < size_b, streams, chunks, size_a + size_b)
        put(dBt + slot * dBt_stride, offset, offset < size_b, 0, 1, 0, value, ACCUMULATE)


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
    a_rate,
    a_working,
    b_master,
    b_first,
    b_prior,
    b_stat,
    b_rate,
    b_working,
    scale,
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
    a_master_stride,
    a_first_stride,
    a_working_stride,
    b_master_stride,
    b_first_stride,
    b_working_stride,
    K: tl.constexpr,
    R: tl.constexpr,
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
    pid, s = tl.program_id(0), tl.program_id(1)
    PROGRAMS_A: tl.constexpr = (W + BRA - 1) // BRA * ((K + BC - 1) // BC)
    if (tl.load(moving + s) != 0) & (tl.load(skipped + s) == 0):
        slot = tl.load(slots + s).to(tl.int64)
        rate = tl.load(lr + slot)
        hyper = (decay, momentum, eps)
        a = (
            a_master + slot * a_master_stride,
            a_first + slot * a_first_stride,
            a_prior,
            a_stat,
            a_rate,
            a_working + slot * a_working_stride,
        )
        b = (
            b_master + slot * b_master_stride,
            b_first + slot * b_first_stride,
            b_prior,
            b_stat,
            b_rate,
            b_working + slot * b_working_stride,
        )
        if pid < PROGRAMS_A:
            g, columns, live, r0, rows, stride = gradient_tile(
                dy,
                x,
                u,
                dU,
                pid,
                s,
                0,
                chunks,
                scale,
                T,
                dy_stride,
                x_stride,
                u_stride,
                dU_stride,
                O0,
                O1,
                O2,
                K,
                R,
                W,
                BRA,
                BRB,
                BC,
                BT,
                CHUNK,
                True,
            )
            bad = apply_update(g, columns, columns, live, r0, rows, stride, a, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        else:
            g_b, columns_b, live_b, r0_b, rows_b, stride_b = gradient_tile(
                dy,
                x,
                u,
                dU,
                pid - PROGRAMS_A,
                s,
                0,
                chunks,
                scale,
                T,
                dy_stride,
                x_stride,
                u_stride,
                dU_stride,
                O0,
                O1,
                O2,
                K,
                R,
                W,
                BRA,
                BRB,
                BC,
                BT,
                CHUNK,
                False,
            )
            bad = apply_update(
                g_b, columns_b, columns_b, live_b, r0_b, rows_b, stride_b, b, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS
            )
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
    a_rate,
    a_working,
    b_master,
    b_first,
    b_prior,
    b_stat,
    b_rate,
    b_working,
    decay,
    momentum,
    eps,
    streams,
    chunks,
    size_a,
    size_b,
    a_master_stride,
    a_first_stride,
    a_working_stride,
    b_master_stride,
    b_first_stride,
    b_working_stride,
    BLOCK: tl.constexpr,
    RMS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    RATE: tl.constexpr,
    WORKING: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Grid (blocks of A then of Bt, streams)."""
    pid, s = tl.program_id(0), tl.program_id(1)
    if (tl.load(moving + s) != 0) & (tl.load(skipped + s) == 0):
        slot = tl.load(slots + s).to(tl.int64)
        rate = tl.load(lr + slot)
        hyper = (decay, momentum, eps)
        a = (
            a_master + slot * a_master_stride,
            a_first + slot * a_first_stride,
            a_prior,
            a_stat,
            a_rate,
            a_working + slot * a_working_stride,
        )
        b = (
            b_master + slot * b_master_stride,
            b_first + slot * b_first_stride,
            b_prior,
            b_stat,
            b_rate,
            b_working + slot * b_working_stride,
        )
        blocks_a = tl.cdiv(size_a, BLOCK)
        if pid < blocks_a:
            offset = pid * BLOCK + tl.arange(0, BLOCK)[:, None]
            g = sum_of_chunks(partial, s, offset, offset < size_a, streams, chunks, size_a + size_b)
            bad = apply_update(g, offset, offset, offset < size_a, 0, 1, 0, a, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        else:
            offset = (pid - blocks_a) * BLOCK + tl.arange(0, BLOCK)[:, None]
            g = sum_of_chunks(partial + size_a, s, offset, offset < size_b, streams, chunks, size_a + size_b)
            bad = apply_update(g, offset, offset, offset < size_b, 0, 1, 0, b, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
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


def plan(dtype: torch.dtype, streams: int, T: int, K: int, part_sizes, rank: int) -> Plan:
    """bfloat16: 128 columns where that gives every multiprocessor two programs, else 64; float32 (no tensor cores):
    small tiles that fit in registers."""
    sizes = tuple(part_sizes) + (0,) * (MAX_PARTS - len(part_sizes))
    width = len(part_sizes) * rank
    wide = dtype == torch.bfloat16
    rows = 128 if wide else 32
    constexprs = dict(K=K, R=rank, W=width, BRA=block(width, rows), BRB=block(rank, rows), BC=64, BT=64 if wide else 16, CHUNK=CHUNK)
    if wide and streams * (triton.cdiv(K, 128) + sum(triton.cdiv(size, 128) for size in sizes)) >= 2 * SMS:
        constexprs["BC"] = 128
    warps = 8 if constexprs["BC"] * constexprs["BRA"] > 64 * 64 else 4
    return Plan(streams, T, sizes, constexprs, dict(num_warps=warps, num_stages=3 if wide else 2))


def checked_plan(op: str, dy, x, u, dU, part_sizes, slots, a, bt) -> Plan:
    """The plan of a call whose adapter tensors are ``a`` [slots, P R, K] and ``bt`` [slots, R, O], packed within a slot."""
    (n, out), k, rank, streams = dy.shape, x.shape[1], bt.shape[1], slots.shape[0]
    width = len(part_sizes) * rank
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
        if tensor.stride()[1:] != (tensor.shape[2], 1):
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}, accepted is packed within a slot")
    return plan(dy.dtype, streams, n // streams, k, part_sizes, rank)


def launch_gradient(p: Plan, dy, x, u, dU, scale, slots, dA, dBt, partial, accumulate: bool) -> None:
    """The token walk; with ``partial`` every chunk for itself."""
    split = partial is not None
    a, b = (dA, dBt) if not split else (partial, partial)
    dynadapt_lora_gradient[(p.programs, p.streams, p.chunks if split else 1)](
        dy,
        x,
        u,
        dU,
        slots,
        a,
        b,
        partial if split else a,
        scale,
        p.T,
        p.streams,
        p.chunks,
        dy.stride(0),
        x.stride(0),
        u.stride(0),
        dU.stride(0),
        a.stride(0),
        b.stride(0),
        *p.sizes,
        **p.constexprs,
        SPLIT=split,
        ACCUMULATE=accumulate and not split,
        **p.options,
        **FUSION,
    )


def chunk_buffer(p: Plan, device) -> torch.Tensor:
    """Scratch [chunks S (P R K + R O)], by powers of two so that lengths share it."""
    return scratch(device, "lora gradient chunks", block(p.chunks * p.streams * sum(p.elements), 1 << 62))


def lora_gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, accumulate) -> None:
    """dA = dU^T x [slots, P R, K]; dBt_p = scale u_p^T dy_p [slots, R, O]; only ``slots`` are touched.

    Raises:
        ValueError: a shape or stride that does not fit, or more than three parts.
    """
    p = checked_plan("lora_gradient", dy, x, u, dU, part_sizes, slots, dA, dBt)
    partial = chunk_buffer(p, dy.device) if p.split else None
    launch_gradient(p, dy, x, u, dU, scale, slots, dA, dBt, partial, accumulate)
    if partial is not None:
        dynadapt_lora_gradient_sum[p.sum_grid](
            partial,
            slots,
            dA,
            dBt,
            p.streams,
            p.chunks,
            dA.stride(0),
            dBt.stride(0),
            *p.elements,
            BLOCK=SUM_BLOCK,
            ACCUMULATE=accumulate,
            num_warps=4,
            **FUSION,
        )


def lora_gradient_update(dy, x, u, dU, part_sizes, scale, slots, moving, a, bt, rule, lr, skipped) -> None:
    """One step of every stream's adapter: ``lora_gradient`` and the rule's update of a [slots, P R, K] and bt [slots, R, O].

    Raises:
        ValueError: a shape or stride that does not fit, more than three parts, or a tensor missing that the rule needs.
    """
    op = "lora_gradient_update"
    p = checked_plan(op, dy, x, u, dU, part_sizes, slots, a.master, bt.master)
    rule.check_fused(op)
    for name, state in (("a", a), ("bt", bt)):
        state.check(op, name, rule)
        epilogue.check_layout(op, name, state, tuple(state.master.shape[1:]), packed=True)
    flags = epilogue.flags(rule, a, a.working)
    if epilogue.flags(rule, bt, bt.working) != flags:
        raise ValueError(f"{op}: a and bt must both have working and prior_rate, or neither")
    states, strides = [], []
    for state in (a, bt):
        working = state.master if state.working is None else state.working
        states += [*epilogue.tensors(state), working]
        strides += [state.master.stride(0), 0 if state.first is None else state.first.stride(0), working.stride(0)]
    who = (slots, moving, lr, skipped, epilogue.counters(dy.device, p.streams))
    if not p.split:
        dynadapt_lora_gradient_update[(p.programs, p.streams)](
            dy,
            x,
            u,
            dU,
            *who,
            *states,
            scale,
            *epilogue.hyper(rule),
            p.T,
            p.chunks,
            dy.stride(0),
            x.stride(0),
            u.stride(0),
            dU.stride(0),
            *p.sizes,
            *strides,
            **p.constexprs,
            **flags,
            ELEMENTS=epilogue.elements(p.options["num_warps"]),
            **p.options,
            **FUSION,
        )
        return
    partial = chunk_buffer(p, dy.device)
    launch_gradient(p, dy, x, u, dU, scale, slots, None, None, partial, False)
    dynadapt_lora_gradient_update_sum[p.sum_grid](
        partial,
        *who,
        *states,
        *epilogue.hyper(rule),
        p.streams,
        p.chunks,
        *p.elements,
        *strides,
        BLOCK=SUM_BLOCK,
        **flags,
        ELEMENTS=SUM_BLOCK,
        num_warps=4,
        **FUSION,
    )


def reason(op: str) -> str:
    return f"Triton, all streams and parts in one launch; two where tokens are split to fill {SMS} multiprocessors"


def _variants() -> list[Variant]:
    pointers = dict.fromkeys(("dy", "x", "u", "dU"), "*bf16")
    strides = ("dy_stride", "x_stride", "u_stride", "dU_stride", "dA_stride", "dBt_stride", "O0", "O1", "O2")
    signature = {
        **pointers,
        "slots": "*i32",
        "dA": "*fp32",
        "dBt": "*fp32",
        "partial": "*fp32",
        "scale": "fp32",
        **dict.fromkeys(LENGTHS + strides, "i32"),
    }
    shapes = {  # streams, K, parts, rank
        "one stream r16": (1, 2048, (2048, 512, 512), 16),
        "64 streams r16": (64, 2048, (2048, 512, 512), 16),
        "64 streams r64": (64, 4096, (14336, 14336), 64),
        "64 streams r128": (64, 4096, (4096, 1024, 1024), 128),
    }
    variants = []
    for dtype, short in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for name, (streams, k, parts, rank) in shapes.items() if short == "bf16" else [("r64", shapes["64 streams r64"])]:
            p = plan(dtype, streams, 512, k, parts, rank)
            typed = {key: value.replace("bf16", short) for key, value in signature.items()}
            variants.append(
                Variant(
                    f"{name} {short}",
                    dynadapt_lora_gradient,
                    typed,
                    {**p.constexprs, "SPLIT": False, "ACCUMULATE": False},
                    tensor_core=short == "bf16",
                    aligned=tuple(k for k in typed if k not in ("scale", *LENGTHS)),
                    **p.options,
                )
            )
    variants += _split_variants(variants[0]) + _update_variants()
    # Tiles are chosen for sm_90; sm_80 spills six registers in one of them.
    return [replace(v, archs=(90, 100)) for v in variants] + [replace(v, archs=(80,), spills=24) for v in variants]


def _split_variants(unsplit: Variant) -> list[Variant]:
    typed = {
        "partial": "*fp32",
        "slots": "*i32",
        "dA": "*fp32",
        "dBt": "*fp32",
        **dict.fromkeys(("streams", "chunks", "dA_stride", "dBt_stride", "size_a", "size_b"), "i32"),
    }
    return [
        replace(unsplit, name="one stream r16 split bf16", constexprs={**unsplit.constexprs, "SPLIT": True}),
        Variant(
            "sum",
            dynadapt_lora_gradient_sum,
            typed,
            dict(BLOCK=SUM_BLOCK, ACCUMULATE=True),
            aligned=tuple(k for k in typed if k not in LENGTHS),
        ),
    ]


def _update_variants() -> list[Variant]:
    types = {
        "slots": "*i32",
        "moving": "*i32",
        "lr": "*fp32",
        "skipped": "*i32",
        "counters": "*i64",
        "scale": "fp32",
        "decay": "fp32",
        "momentum": "fp32",
        "eps": "fp32",
        "dy": "*bf16",
        "x": "*bf16",
        "u": "*bf16",
        "dU": "*bf16",
        "partial": "*fp32",
        "a_working": "*bf16",
        "b_working": "*bf16",
    }
    tensors = ("master", "first", "prior", "stat", "rate")
    types |= {f"{t}_{name}": "*fp32" for t in "ab" for name in tensors}
    variants = []
    for rule, flags in epilogue.RULES.items():
        shapes = ((1, 16), (64, 64)) if rule == "momentum" else ((64, 16),)  # momentum reads most
        for kernel, name, constexprs, options in (
            *(
                (dynadapt_lora_gradient_update, f"{streams} streams r{r}", p.constexprs, p.options)
                for streams, r in shapes
                for p in [plan(torch.bfloat16, streams, 512, 2048, (8192, 8192), r)]
            ),
            (dynadapt_lora_gradient_update_sum, "sum", dict(BLOCK=SUM_BLOCK), {}),
        ):
            fixed = {**constexprs, **flags, "ELEMENTS": epilogue.elements(options.get("num_warps", 4))}
            names = [n for n in kernel.arg_names if n not in fixed]
            typed = {n: types.get(n, "i32") for n in names}
            aligned = tuple(n for n in names if n not in LENGTHS and typed[n] != "fp32")
            variants.append(
                Variant(
                    f"{name} {rule}", kernel, typed, fixed, **options, aligned=aligned, tensor_core=kernel is dynadapt_lora_gradient_update
                )
            )
    return variants


VARIANTS = _variants()
