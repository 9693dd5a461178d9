"""The adapters' gradient applied where it stands, in registers (epilogue.py): no gradient in memory, master and working copy are read and
written once. Where the tokens are split, the launch that adds the chunks does it."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from . import epilogue
from .common import Variant, launch, variant, wait_for_previous
from .epilogue import apply_update, report
from .lora_gradient_plan import LENGTHS, MAX_PARTS, SUM_BLOCK, TYPES, by_threes, checked_plan, chunk_buffer, cut, family, plan
from .lora_gradient_tiles import placed, scales_at, sum_of_chunks, tile_of_a, tile_of_b
from .lora_gradient_walk import launch_gradient


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
            total, columns_b, live_b, rows_b, scale = tile_of_b(
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
            at = (columns_b, columns_b, live_b)
            bad = apply_update(scale * total, at, rows_b, b, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
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
            g *= scales_at(offset, (scale0, scale1, scale2), (O0, O1, O2), EQUAL)
            bad = apply_update(g, rows, (0, 1, 0), b, rate, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        report(counters, skipped, s, bad)


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


def _variants():
    compiled = lambda name, kernel, constexprs, **more: variant(name, kernel, TYPES, constexprs, **more)  # noqa: E731
    for rule, flags in epilogue.RULES.items():
        for streams, rank in ((1, 16), (64, 64)) if rule == "momentum" else ((64, 16),):  # momentum reads most
            p = plan(torch.bfloat16, streams, 512, 2048, (8192, 8192), rank)
            fixed = {**p.constexprs, **flags, "ELEMENTS": epilogue.elements(p.options["num_warps"])}
            yield compiled(f"{streams} streams r{rank} {rule}", dynadapt_lora_gradient_update, fixed, tensor_core=True, **p.options)
        yield compiled(
            f"sum {rule}", dynadapt_lora_gradient_update_sum, {**flags, "BLOCK": SUM_BLOCK, "ELEMENTS": epilogue.elements(4), "EQUAL": True}
        )


VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=24)) for v in _variants()]
