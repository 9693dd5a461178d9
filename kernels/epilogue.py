"""The optimizer step as the last lines of a gradient kernel: what dynadapt/ops/update.py defines, on one tile.

A program holds a tile of the gradient in registers; ``apply_update`` moves the elements that it belongs to, some at a time
because their state needs registers too, and ``report`` tells the stream. The flag that a stream is to be skipped is read
by every program of a launch and must not change before all have read it, so programs count themselves in (an integer,
hence in any order) and the last one writes it.

Device functions only: they are compiled, and held to budgets, inside the kernels of the files that use them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import scratch

KINDS = ("sgd", "rms")
STATE = ("master", "first", "prior", "stat", "prior_rate")
TYPES = {  # of the kernels' other arguments, for ahead-of-time compiles
    "lr": "*fp32",
    "skipped": "*i32",
    "counters": "*i64",
    **dict.fromkeys(("decay", "momentum", "eps"), "fp32"),
}


@triton.jit
def apply_update(
    g,
    rows,
    columns,
    state,
    lr,
    hyper,
    RMS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DECAY: tl.constexpr,
    RATE: tl.constexpr,
    WORKING: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Moves the elements of the gradient tile g [X, Y]; 1 if one was not finite (it keeps its state), else 0.

    rows: (offset0, work0, live0), each [X, 1]; columns: (start1, end1, stride1). Element (i, j) lies at
    offset0[i] + (start1 + j) stride1 of the state, at work0[i] + (start1 + j) stride1 of the working copy, and exists where
    live0[i] and start1 + j < end1. At most ELEMENTS at a time, whose state fits in registers too: the tile is halved along
    its second dimension, which the tensor cores keep within a thread.
    """
    start1, end1, stride1 = columns
    if g.shape[0] * g.shape[1] > ELEMENTS and g.shape[1] > 1:
        HALF: tl.constexpr = g.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(g, [g.shape[0], 2, HALF]), (0, 2, 1)))
        behind = (start1 + HALF, end1, stride1)
        bad = apply_update(left, rows, columns, state, lr, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
        return bad | apply_update(right, rows, behind, state, lr, hyper, RMS, MOMENTUM, DECAY, RATE, WORKING, ELEMENTS)
    else:
        offset0, work0, live0 = rows
        master, first, prior, stat, prior_rate, working = state
        decay, momentum, eps = hyper
        index1 = start1 + tl.arange(0, g.shape[1])[None, :]
        offset = offset0 + index1 * stride1
        mask = live0 & (index1 < end1)
        write = mask & (tl.abs(g) < float("inf"))  # false for NaN too
        value = tl.load(master + offset, mask=write, other=0.0)
        # Products are added in one rounding, written out: left to the compiler, that would depend on the kernel around these lines.
        if DECAY:
            rate = decay
            if RATE:
                rate = decay * tl.load(prior_rate + offset, mask=write, other=0.0)
            value = tl.fma(rate, tl.load(prior + offset, mask=write, other=0.0) - value, value)
        if RMS:
            value -= lr * g / (tl.load(stat + offset, mask=write, other=1.0) + eps)
        elif MOMENTUM:
            m = tl.fma(momentum, tl.load(first + offset, mask=write, other=0.0), g)
            tl.store(first + offset, m, mask=write)
            value = tl.fma(-lr, m, value)
        else:
            value = tl.fma(-lr, g, value)
        tl.store(master + offset, value, mask=write)
        if WORKING:
            tl.store(working + work0 + index1 * stride1, value.to(working.dtype.element_ty), mask=write)
        return (tl.sum(mask.to(tl.int32) - write.to(tl.int32)) > 0).to(tl.int64)


@triton.jit
def report(counters, skipped, s, bad):
    """Counts one program of stream s in; the last of the launch's tl.num_programs(0) sets skipped[s] if any was ``bad``.

    The low half of the counter holds programs, the high half bad ones; it is zero again afterwards.
    """
    before = tl.atomic_add(counters + s, 1 + (bad << 32))
    if (before & 0xFFFFFFFF) + 1 == tl.num_programs(0):
        tl.store(counters + s, tl.zeros_like(before))
        if (before >> 32) + bad > 0:
            tl.store(skipped + s, 1)


def counters(device, streams: int) -> torch.Tensor:
    return scratch(device, "programs done", streams, dtype=torch.int64)


def tensors(state) -> dict[str, torch.Tensor]:
    """An UpdateState's tensors by the kernels' names; the master stands in for what is not there."""
    given = {name: getattr(state, name) for name in STATE}
    return {name: state.master if t is None else t for name, t in given.items()}


def hyper(rule) -> dict[str, float]:
    return dict(decay=rule.decay, momentum=rule.momentum, eps=rule.eps)


def flags(rule, state, working) -> dict[str, bool]:
    """The rule as the kernels' constexprs. Raises ValueError for a kind that ``apply_update`` has no lines for."""
    if rule.kind not in KINDS:
        raise ValueError(f"kind={rule.kind!r}: the gradient kernels update by {' and '.join(KINDS)}")
    decays = rule.decay > 0
    return dict(
        RMS=rule.kind == "rms",
        MOMENTUM="first" in rule.uses,
        DECAY=decays,
        RATE=decays and state.prior_rate is not None,
        WORKING=working is not None,
    )


def check_layout(op: str, name: str, state, shape: tuple[int, ...], packed: bool) -> None:
    """Every tensor of a state has the last dimensions ``shape``; ``packed``: these lie without gaps."""
    for field in ("master", "working", "first", "prior", "stat", "prior_rate"):
        tensor = getattr(state, field)
        if tensor is None:
            continue
        if tuple(tensor.shape[-2:]) != shape:
            raise ValueError(f"{op}: {name}.{field} has shape {list(tensor.shape)}, accepted is [..., {shape[0]}, {shape[1]}]")
        if packed and tensor.stride()[-2:] != (shape[1], 1):
            raise ValueError(f"{op}: {name}.{field} has strides {tensor.stride()}, accepted is packed within a slot")


def elements(num_warps: int) -> int:
    """How many a program moves at a time: 8 a thread, so that registers hold six tensors of them and the waiting gradient."""
    return 8 * 32 * num_warps


RULES = {  # the flags of ahead-of-time compiles
    "momentum": dict(RMS=False, MOMENTUM=True, DECAY=True, RATE=True, WORKING=True),
    "rms": dict(RMS=True, MOMENTUM=False, DECAY=True, RATE=True, WORKING=True),
}
