"""Where a program's tile lies: the order of programs, the part a column tile is in, how many programs fill a GPU."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of ``device``; those of an H200 where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@cache
def generation(device: torch.device) -> int:
    """90 for Hopper, 100 for data-centre Blackwell (each has its own matrix instruction), 80 for every other GPU."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9
    return {9: 90, 10: 100}.get(major, 80)


def three(values, missing=0) -> tuple:
    """``values`` of up to three parts, filled up to three."""
    return (*values, *[missing] * (3 - len(values)))


@triton.jit
def grouped(program, row_blocks, column_tiles, GROUP: tl.constexpr):
    """(row block, column tile) of ``program``: GROUP row blocks go down one column tile before the next, so that the
    programs that run together read few distinct rows of either operand and find them in L2."""
    per_group = GROUP * column_tiles
    first = (program // per_group) * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    within = program % per_group
    return first + within % height, within // height


@triton.jit
def part_columns(part, O0, O1, O2):
    """(first column, number of columns) of part 0, 1 or 2."""
    start = tl.where(part == 0, 0, tl.where(part == 1, O0, O0 + O1))
    size = tl.where(part == 0, O0, tl.where(part == 1, O1, O2))
    return start, size


@triton.jit
def locate(tile, O0, O1, O2, BLOCK: tl.constexpr):
    """Column tile ``tile`` of parts with O0, O1, O2 columns, no tile across two parts: (part, the part's first column,
    its number of columns, the tile's first column within the part)."""
    n0, n1 = tl.cdiv(O0, BLOCK), tl.cdiv(O1, BLOCK)
    part = (tile >= n0).to(tl.int32) + (tile >= n0 + n1).to(tl.int32)
    start, size = part_columns(part, O0, O1, O2)
    first_tile = tl.where(part == 0, 0, tl.where(part == 1, n0, n0 + n1))
    return part, start, size, (tile - first_tile) * BLOCK
