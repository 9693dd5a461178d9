"""The adapters' gradient, written to memory: the walk over a stream's tokens, and the launch that adds chunks up where they are split."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .common import Variant, launch, variant, wait_for_previous
from .lora_gradient_plan import LENGTHS, SHAPES, SUM_BLOCK, TYPES, Plan, plan
from .lora_gradient_tiles import placed, scales_at, sum_of_chunks, tile_of_a, tile_of_b
from .token_sums import put


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
        put(a, columns, live, rows, value, 1.0, ACCUMULATE)
    else:  # other names: the two tiles may differ in shape
        value_b, columns_b, live_b, rows_b, scale = tile_of_b(
            pid - PROGRAMS_A, (dy, dy_stride), (u, u_stride), tokens, (O0, O1, O2), width, scales, R, R0, R1, R2, EQUAL, BRB, BC, BT, CHUNK
        )
        put(b, columns_b, live_b, rows_b, value_b, scale, ACCUMULATE)


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
        put(dA + slot * dA_stride, offset, offset < size_a, (0, 1, 0), value, 1.0, ACCUMULATE)
    else:
        offset = (pid - blocks_a) * BLOCK + tl.arange(0, BLOCK)[:, None]
        value = sum_of_chunks(partial + size_a, s, offset, offset < size_b, streams, chunks, size_a + size_b)
        scale = scales_at(offset, (scale0, scale1, scale2), (O0, O1, O2), EQUAL)
        put(dBt + slot * dBt_stride, placed(offset, (O0, O1, O2), b_row), offset < size_b, (0, 1, 0), value, scale, ACCUMULATE)


def launch_gradient(p: Plan, given: dict, dA, dBt, partial, accumulate: bool) -> None:
    """The token walk; with ``partial`` every chunk for itself."""
    split = partial is not None
    if split:
        dA, dBt, accumulate = partial, partial, False
    tensors = dict(dA=dA, dBt=dBt, partial=partial if split else dA, dA_stride=dA.stride(0), dBt_stride=dBt.stride(0))
    tensors["b_row"] = sum(p.sizes) if split else dBt.stride(1)
    grid = (p.programs, p.streams, p.chunks if split else 1)
    launch(dynadapt_lora_gradient, grid, given | tensors, SPLIT=split, ACCUMULATE=accumulate, **p.options)


def launch_sums(p: Plan, given: dict, partial, dA, dBt, accumulate: bool) -> None:
    """The chunks' shares, in order, to dA and dBt."""
    out = dict(dA=dA, dBt=dBt, dA_stride=dA.stride(0), dBt_stride=dBt.stride(0), b_row=dBt.stride(1))
    sums = dict(partial=partial, BLOCK=SUM_BLOCK, ACCUMULATE=accumulate)
    launch(dynadapt_lora_gradient_sum, p.sum_grid, given, **out, **sums, num_warps=4)


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


# Tiles are chosen for sm_90; sm_80 spills six registers in one of them.
VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=24)) for v in _variants()]
