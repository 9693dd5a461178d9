"""Gradient of a bias: column sums of dy, added to db.

Two launches, because no atomics are used: each program of the first adds up a tile of columns over every n-th block of rows
in registers and writes its sums to scratch; the second (the norms' own, kernels/norm.py) adds the programs' sums in order, so
the bits are the same every time. Traffic: dy once, and 4 bytes per column and program. Not fused into the product that makes
dy or into the weight gradient that reads it: the first may be cuBLAS, the second does not visit whole columns in one program
where it is split over rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, scratch, variant, wait_for_previous
from .norm import COLUMNS as SUM_COLUMNS
from .norm import SUM_ROWS, dynadapt_norm_sums

COLUMNS, ROWS = 256, 32  # of a tile: 8,192 elements, 16-byte loads of bfloat16, 64 values a thread of four warps
PROGRAMS = 264  # wanted: two for each of the H200's 132 multiprocessors


@triton.jit(do_not_specialize=["N"])
def dynadapt_bias_gradient(dy, partials, N, stride_dy, O, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """partials [groups, O]: program (i, j) sums columns i * COLUMNS.. over the row blocks j, j + groups, ..."""
    wait_for_previous()
    o = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    group, groups = tl.program_id(1), tl.num_programs(1)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(group, tl.cdiv(N, ROWS), groups):
        n = block * ROWS + tl.arange(0, ROWS)  # [ROWS]
        at = dy + n[:, None].to(tl.int64) * stride_dy + o[None, :]
        total += tl.load(at, (n < N)[:, None] & (o < O)[None, :], other=0.0).to(tl.float32)
    tl.store(partials + group.to(tl.int64) * O + o, tl.sum(total, 0), o < O)


def bias_gradient(dy, db) -> None:
    """db [O] float32 += the column sums of dy [N, O], whose rows may be strided; see ``dynadapt.ops.bias_gradient``."""
    N, O = dy.shape
    if tuple(db.shape) != (O,) or not db.is_contiguous():
        raise ValueError(f"bias_gradient: db has shape {list(db.shape)}, accepted is [{O}], contiguous")
    if dy.stride(1) != 1 and O > 1:
        raise ValueError(f"bias_gradient: dy has strides {list(dy.stride())}, accepted is 1 between columns")
    if N == 0 or O == 0:
        return
    tiles = triton.cdiv(O, COLUMNS)
    most = triton.cdiv(PROGRAMS, tiles)
    groups = min(triton.cdiv(N, ROWS), most)
    partials = scratch(dy.device, "bias_sums", most, O)
    dynadapt_bias_gradient[(tiles, groups)](dy, partials, N, dy.stride(0), O, COLUMNS=COLUMNS, ROWS=ROWS, num_warps=4, **FUSION)
    dynadapt_norm_sums[(triton.cdiv(O, SUM_COLUMNS), 1)](
        partials, db, None, groups, most * O, O, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, num_warps=4, **FUSION
    )


_TYPES = {"dy": "*bf16", "partials": "*fp32", "out0": "*fp32"}
_BLOCKS = {"COLUMNS": COLUMNS, "ROWS": ROWS}
_SUMS = {"out1": None, "ROWS": SUM_ROWS, "COLUMNS": SUM_COLUMNS}
VARIANTS = [
    variant("bf16", dynadapt_bias_gradient, _TYPES, _BLOCKS),
    variant("fp32", dynadapt_bias_gradient, _TYPES, _BLOCKS, dtype="fp32"),
    variant("odd width", dynadapt_bias_gradient, _TYPES, _BLOCKS, loose=("stride_dy", "O")),
    variant("of one bias", dynadapt_norm_sums, _TYPES, _SUMS),
]
