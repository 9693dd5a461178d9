"""Token embedding: rows of a table, gathered; its gradient, summed over the places where each token stands.

Forward is one launch that reads and writes each row once. Backward adds to the table without atomics, so that a token that
stands in many places gets the same sum every time: the tokens are sorted (stably, by torch, into scratch memory), then one
program for each token that occurs and each block of columns walks the token's places in order. Cost: dout once, the touched
rows of the table twice, and the sort. Not fused: the sort, which is torch's radix sort.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import FUSION, block, scratch, variant, wait_for_previous

FORWARD_BLOCK = 1024  # columns: 8 values, one 16-byte access of bfloat16, for each of four warps' threads
BACKWARD_BLOCK, PLACES = 128, 16  # 2,048 values in flight for each program: a long run is a chain of such steps


@triton.jit
def dynadapt_embedding_forward(tokens, table, position_table, positions, out, stride_out, H: tl.constexpr, BLOCK: tl.constexpr):
    wait_for_previous()
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = cols < H
    x = tl.load(table + tl.load(tokens + row) * H + cols, mask=live, other=0.0)
    if position_table is not None:
        p = tl.load(position_table + tl.load(positions + row) * H + cols, mask=live, other=0.0)
        x = (x.to(tl.float32) + p.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * stride_out + cols, x, mask=live)


@triton.jit(do_not_specialize=["N"])
def dynadapt_embedding_backward(ordered, places, dout, dtable, N, stride_dout, H: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr):
    """``ordered`` int64 [N]: the tokens in order; ``places`` int64 [N]: their rows. A program that starts no run ends."""
    wait_for_previous()
    first = tl.program_id(0)
    token = tl.load(ordered + first)
    before = tl.load(ordered + first - 1, mask=first > 0, other=-1)
    if token != before:
        cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        live = cols < H
        acc = tl.zeros((BLOCK,), tl.float32)
        length = PLACES
        while length == PLACES:  # a full block may be followed by more of the same token
            at = first + tl.arange(0, PLACES)
            mine = tl.load(ordered + at, mask=at < N, other=-1) == token
            row = tl.load(places + at, mask=mine, other=0)
            d = tl.load(dout + row[:, None] * stride_dout + cols[None, :], mask=mine[:, None] & live[None, :], other=0.0)  # [PLACES, BLOCK]
            acc += tl.sum(d.to(tl.float32), 0)
            length = tl.sum(mine.to(tl.int32), 0)
            first += PLACES
        out = dtable + token * H + cols
        tl.store(out, tl.load(out, mask=live, other=0.0) + acc, mask=live)


def embedding_forward(tokens, table, position_table, positions, out) -> None:
    """out [N, H]; tokens, positions int64 [N]; table [V, H]; position_table [P, H] or None."""
    N, H = out.shape
    if table.shape[1] != H:
        raise ValueError(f"embedding_forward: table has shape {list(table.shape)}, accepted is [any, {H}]")
    if (position_table is None) != (positions is None):
        raise ValueError("embedding_forward: positions and position_table go together, one of them is None")
    size = block(H, FORWARD_BLOCK)
    dynadapt_embedding_forward[(N, triton.cdiv(H, size))](
        tokens, table, position_table, positions, out, out.stride(0), H, size, num_warps=4, **FUSION
    )


def embedding_backward(tokens, dout, dtable) -> None:
    """dtable [V, H] float32 += the sum of dout [N, H] over the places where each token stands; the same bits every time."""
    N, H = dout.shape
    if dtable.shape[1] != H:
        raise ValueError(f"embedding_backward: dtable has shape {list(dtable.shape)}, accepted is [any, {H}]")
    ordered = scratch(tokens.device, "embedding tokens", N, dtype=torch.int64)
    places = scratch(tokens.device, "embedding places", N, dtype=torch.int64)
    torch.sort(tokens, stable=True, dim=0, out=(ordered, places))
    size = block(H, BACKWARD_BLOCK)
    dynadapt_embedding_backward[(N, triton.cdiv(H, size))](
        ordered, places, dout, dtable, N, dout.stride(0), H, size, PLACES, num_warps=4, **FUSION
    )


def reason(op: str) -> str:
    return "Triton gather" if op == "embedding_forward" else "torch's sort, then one Triton program a token"


_TYPES = dict.fromkeys(("tokens", "positions", "ordered", "places"), "*i64")
_TYPES |= dict.fromkeys(("table", "position_table", "out", "dout"), "*bf16") | {"dtable": "*fp32"}
_ROTARY, _LEARNED = {"H": 2048, "BLOCK": FORWARD_BLOCK, "position_table": None, "positions": None}, {"H": 768, "BLOCK": FORWARD_BLOCK}
_BACKWARD = {"H": 2048, "BLOCK": BACKWARD_BLOCK, "PLACES": PLACES}
VARIANTS = [
    variant("bf16 H=2048", dynadapt_embedding_forward, _TYPES, _ROTARY, registers=64),
    variant("bf16 H=768 positions", dynadapt_embedding_forward, _TYPES, _LEARNED, registers=64),
    variant("bf16 H=2048", dynadapt_embedding_backward, _TYPES, _BACKWARD, registers=128),
]
