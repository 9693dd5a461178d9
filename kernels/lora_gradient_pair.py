"""The adapters' gradients of two linears in one launch, where one fills no more than a fraction of the card.

At a few hundred tokens the gradient of one linear is a few dozen programs on 132 multiprocessors, and takes as long as a launch does. Programs of the
second linear follow those of the first. A tile's product is the one launch's (lora_gradient_tiles.gradient_tile), of the same blocks in
the same order, so a linear's gradient has the same bits whether another is in the launch or not.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .common import Variant, launch, variant, wait_for_previous
from .lora_gradient_plan import LENGTHS, SMS, TYPES, Plan, plan
from .lora_gradient_tiles import gradient_tile

WAVES = 2  # of programs: beyond, what a launch costs is little, and dy is better read while it is still in L2
BOTH = ("slots", "T", "streams", "chunks", "BT", "CHUNK")  # arguments that two linears of a layer share


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient_pair(
    dy,
    x,
    u,
    dU,
    dA,
    dBt,
    scale0,
    scale1,
    scale2,
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
    dy_2,
    x_2,
    u_2,
    dU_2,
    dA_2,
    dBt_2,
    scale0_2,
    scale1_2,
    scale2_2,
    dy_stride_2,
    x_stride_2,
    u_stride_2,
    dU_stride_2,
    dA_stride_2,
    dBt_stride_2,
    O0_2,
    O1_2,
    O2_2,
    b_row_2,
    slots,
    T,
    chunks,
    first_programs,
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
    K_2: tl.constexpr,
    R_2: tl.constexpr,
    R0_2: tl.constexpr,
    R1_2: tl.constexpr,
    R2_2: tl.constexpr,
    EQUAL_2: tl.constexpr,
    W_2: tl.constexpr,
    BRA_2: tl.constexpr,
    BRB_2: tl.constexpr,
    BC_2: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid (tiles of the first linear, then of the second; streams)."""
    wait_for_previous()
    pid, s = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + s).to(tl.int64)
    tokens = (s.to(tl.int64) * T, T, 0, chunks)
    if pid < first_programs:
        inputs = ((dy, dy_stride), (x, x_stride), (u, u_stride), (dU, dU_stride))
        out = (dA + slot * dA_stride, dBt + slot * dBt_stride)
        sizes, scales = (O0, O1, O2), (scale0, scale1, scale2)
        gradient_tile(pid, inputs, out, tokens, sizes, b_row, scales, K, R, R0, R1, R2, EQUAL, W, BRA, BRB, BC, BT, CHUNK, ACCUMULATE)
    else:  # other names: the linears differ in shape
        inputs_2 = ((dy_2, dy_stride_2), (x_2, x_stride_2), (u_2, u_stride_2), (dU_2, dU_stride_2))
        out_2 = (dA_2 + slot * dA_stride_2, dBt_2 + slot * dBt_stride_2)
        sizes_2, scales_2 = (O0_2, O1_2, O2_2), (scale0_2, scale1_2, scale2_2)
        gradient_tile(
            pid - first_programs,
            inputs_2,
            out_2,
            tokens,
            sizes_2,
            b_row_2,
            scales_2,
            K_2,
            R_2,
            R0_2,
            R1_2,
            R2_2,
            EQUAL_2,
            W_2,
            BRA_2,
            BRB_2,
            BC_2,
            BT,
            CHUNK,
            ACCUMULATE,
        )


def fits(p: Plan, q: Plan) -> bool:
    """Whether two linears go into one launch: no tokens are split, blocks are walked alike, and the programs are few."""
    alike = (p.streams, p.T, p.options) == (q.streams, q.T, q.options)
    return alike and not p.split and not q.split and p.streams * (p.programs + q.programs) <= WAVES * SMS


def launch_pair(plans: tuple[Plan, Plan], given: tuple[dict, dict], dA, dBt, accumulate: bool) -> None:
    """Both gradients, whose plans fit; ``given``: of ``lora_gradient_plan.family``; dA, dBt: pairs."""
    p, q = plans
    first, second = (
        {**own, "dA": a, "dBt": bt, "dA_stride": a.stride(0), "dBt_stride": bt.stride(0), "b_row": bt.stride(1)}
        for own, a, bt in zip(given, dA, dBt)
    )
    both = first | {f"{name}_2": value for name, value in second.items() if name not in BOTH}
    grid = (p.programs + q.programs, p.streams)
    launch(dynadapt_lora_gradient_pair, grid, both, first_programs=p.programs, ACCUMULATE=accumulate, **p.options)


def _variants():
    types = {**TYPES, **{f"{name}_2": kind for name, kind in TYPES.items()}}
    for name, dtype, k, parts, k2, parts2, rank in (
        ("feed-forward of 135M r16 bf16", torch.bfloat16, 1536, (576,), 576, (1536, 1536), 16),
        ("attention of 135M r16 bf16", torch.bfloat16, 576, (576,), 576, (576, 192, 192), 16),
        ("attention of 1B r64 bf16", torch.bfloat16, 2048, (2048,), 2048, (2048, 512, 512), 64),
        ("attention of 135M r16 fp32", torch.float32, 576, (576,), 576, (576, 192, 192), 16),
    ):
        p, q = (plan(dtype, 1, 512, *sizes, rank) for sizes in ((k, parts), (k2, parts2)))
        constexprs = {**p.constexprs, **{f"{n}_2": c for n, c in q.constexprs.items() if n not in BOTH}, "ACCUMULATE": False}
        bf16 = dtype == torch.bfloat16
        yield variant(name, dynadapt_lora_gradient_pair, types, constexprs, dtype="bf16" if bf16 else "fp32", tensor_core=bf16, **p.options)


VARIANTS: list[Variant] = [replace(v, **target) for target in (dict(archs=(90, 100)), dict(archs=(80,), spills=24)) for v in _variants()]
