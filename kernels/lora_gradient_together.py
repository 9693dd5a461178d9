"""Adapter gradients of several linears in one launch: what a layer's backward has to give, where each alone would leave multiprocessors idle.

With few tokens the launch of one linear's gradient takes longer than its loads. Here programs count through the linears, for each the
tiles of dA, then those of dBt. All are the same product, tile^T left, of [BC, BR] values: a program chooses its tensors and sizes among
the linears' and runs the one loop. BR covers the rank, so that the dA of P parts has up to P row tiles, whose x comes from L2 after the first.

A tile sums tokens as in lora_gradient.py, chunk after chunk, and each of its values on its own: together or one by one, the same bits.

Together go linears with one scale and rank for all parts, whose programs would be at most WAVES a multiprocessor, and, where there are several
chunks of tokens, at least one: else the tokens are better split, which lora_gradient.py does. What does not fit is launched alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import Variant, block, launch, variant, wait_for_previous
from .lora_gradient_plan import CHUNK, LENGTHS, MAX_PARTS, SMS, TYPES, checked_plan
from .tiles import locate, three
from .token_sums import put, tile_times_left

MOST = 4  # linear groups of a layer
WAVES = 4
COLUMNS = 64
ROWS = {torch.bfloat16: 128, torch.float32: 32}  # of a tile, which hold the largest rank


@triton.jit
def of_four(which, values):
    a, b, c, d = values
    return tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))


@triton.jit
def programs_of(K, width, sizes, BR: tl.constexpr, BC: tl.constexpr):
    """(programs of one linear's dA, of all its gradient)."""
    O0, O1, O2 = sizes
    of_a = tl.cdiv(width, BR) * tl.cdiv(K, BC)
    return of_a, of_a + tl.cdiv(O0, BC) + tl.cdiv(O1, BC) + tl.cdiv(O2, BC)


@triton.jit(do_not_specialize=LENGTHS)
def dynadapt_lora_gradient_together(
    dy0,
    dy1,
    dy2,
    dy3,
    x0,
    x1,
    x2,
    x3,
    u0,
    u1,
    u2,
    u3,
    dU0,
    dU1,
    dU2,
    dU3,
    dA0,
    dA1,
    dA2,
    dA3,
    dBt0,
    dBt1,
    dBt2,
    dBt3,
    slots,
    scale0,
    scale1,
    scale2,
    scale3,
    T,
    chunks,
    dy_stride0,
    dy_stride1,
    dy_stride2,
    dy_stride3,
    x_stride0,
    x_stride1,
    x_stride2,
    x_stride3,
    u_stride0,
    u_stride1,
    u_stride2,
    u_stride3,
    dU_stride0,
    dU_stride1,
    dU_stride2,
    dU_stride3,
    dA_stride0,
    dA_stride1,
    dA_stride2,
    dA_stride3,
    dBt_stride0,
    dBt_stride1,
    dBt_stride2,
    dBt_stride3,
    b_row0,
    b_row1,
    b_row2,
    b_row3,
    K0,
    K1,
    K2,
    K3,
    W0,
    W1,
    W2,
    W3,
    O00,
    O01,
    O02,
    O10,
    O11,
    O12,
    O20,
    O21,
    O22,
    O30,
    O31,
    O32,
    R: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid (tiles of the first linear's dA and dBt, of the second's, ..., streams). dy0 .. b_row0, K0, W0 (rows of dA) and O00, O01, O02
    (columns of dBt's parts) are the first's."""
    wait_for_previous()
    pid, s = tl.program_id(0), tl.program_id(1)
    a0, n0 = programs_of(K0, W0, (O00, O01, O02), BR, BC)
    a1, n1 = programs_of(K1, W1, (O10, O11, O12), BR, BC)
    a2, n2 = programs_of(K2, W2, (O20, O21, O22), BR, BC)
    a3, n3 = programs_of(K3, W3, (O30, O31, O32), BR, BC)
    i = (pid >= n0).to(tl.int32) + (pid >= n0 + n1).to(tl.int32) + (pid >= n0 + n1 + n2).to(tl.int32)
    pid -= of_four(i, (0, n0, n0 + n1, n0 + n1 + n2))
    programs_a = of_four(i, (a0, a1, a2, a3))
    of_a = pid < programs_a
    K, W = of_four(i, (K0, K1, K2, K3)), of_four(i, (W0, W1, W2, W3))
    blocks = tl.cdiv(W, BR)
    sizes = of_four(i, (O00, O10, O20, O30)), of_four(i, (O01, O11, O21, O31)), of_four(i, (O02, O12, O22, O32))
    part, start, size, within = locate(tl.maximum(pid - programs_a, 0), sizes[0], sizes[1], sizes[2], BC)
    # rows of left that the tile is of, where they end, and which of them is the first row of what is written
    r0, r_end, r_first = tl.where(of_a, pid % blocks * BR, part * R), tl.where(of_a, W, part * R + R), tl.where(of_a, 0, part * R)
    c0, c_end = tl.where(of_a, pid // blocks * BC, start + within), tl.where(of_a, K, start + size)
    left = tl.where(of_a, of_four(i, (dU0, dU1, dU2, dU3)), of_four(i, (u0, u1, u2, u3)))
    tile = tl.where(of_a, of_four(i, (x0, x1, x2, x3)), of_four(i, (dy0, dy1, dy2, dy3)))
    out = tl.where(of_a, of_four(i, (dA0, dA1, dA2, dA3)), of_four(i, (dBt0, dBt1, dBt2, dBt3)))
    left_stride = tl.where(
        of_a, of_four(i, (dU_stride0, dU_stride1, dU_stride2, dU_stride3)), of_four(i, (u_stride0, u_stride1, u_stride2, u_stride3))
    )
    tile_stride = tl.where(
        of_a, of_four(i, (x_stride0, x_stride1, x_stride2, x_stride3)), of_four(i, (dy_stride0, dy_stride1, dy_stride2, dy_stride3))
    )
    out_stride = tl.where(
        of_a, of_four(i, (dA_stride0, dA_stride1, dA_stride2, dA_stride3)), of_four(i, (dBt_stride0, dBt_stride1, dBt_stride2, dBt_stride3))
    )
    out_row = tl.where(of_a, K, of_four(i, (b_row0, b_row1, b_row2, b_row3)))
    scale = tl.where(of_a, 1.0, of_four(i, (scale0, scale1, scale2, scale3)))
    tokens = (s.to(tl.int64) * T, T, 0, chunks)
    total = tile_times_left((left, left_stride), (tile, tile_stride), tokens, (r0, r_end), (c0, c_end), BR, BC, BT, CHUNK)
    out += tl.load(slots + s).to(tl.int64) * out_stride
    columns = c0 + tl.arange(0, BC)[:, None]
    put(out, columns, columns < c_end, (r0 - r_first, r_end - r_first, out_row), total, scale, ACCUMULATE)


def constants(dtype: torch.dtype, rank: int) -> tuple[dict, dict]:
    """(constexprs, options) of a launch."""
    wide = dtype == torch.bfloat16
    constexprs = dict(R=rank, BR=block(rank, ROWS[dtype]), BC=COLUMNS, BT=64 if wide else 16, CHUNK=CHUNK)
    return constexprs, dict(num_warps=8 if constexprs["BR"] > 64 else 4, num_stages=3 if wide else 2)


def programs(k: int, sizes, rank: int, rows: int) -> int:
    """Tiles of one linear's gradient."""
    return triton.cdiv(len(sizes) * rank, rows) * triton.cdiv(k, COLUMNS) + sum(triton.cdiv(size, COLUMNS) for size in sizes)


def linears_fit(dtype: torch.dtype, linears, streams: int, rows: int) -> bool:
    """Whether one launch takes the gradients of ``linears``, (K, part sizes, scale, rank) of each."""
    rank = linears[0][3] if linears else 0
    if not 2 <= len(linears) <= MOST or dtype not in ROWS or not streams or rank > ROWS[dtype]:
        return False
    if any(not isinstance(scale, (int, float)) or len(sizes) > MAX_PARTS or own != rank for _, sizes, scale, own in linears):
        return False
    constexprs, _ = constants(dtype, rank)
    count = streams * sum(programs(k, sizes, rank, constexprs["BR"]) for k, sizes, _, _ in linears)
    return count <= WAVES * SMS and (count >= SMS or rows <= streams * CHUNK)


def fit(calls) -> bool:
    """Whether one launch takes all ``calls`` (tuples of ``lora_gradient``'s arguments)."""
    dy, _, _, _, _, _, slots, _, _, accumulate = calls[0]
    linears = []
    for own, x, _, _, sizes, scale, own_slots, _, dBt, adds in calls:
        alike = len(own) == len(dy) and own.dtype == dy.dtype and own_slots is slots and adds == accumulate
        if not alike or dBt.dim() != 3:  # flat: of slots with ranks of their own
            return False
        linears.append((x.shape[1], sizes, scale, dBt.shape[1]))
    return linears_fit(dy.dtype, linears, len(slots), len(dy))


def launch_together(calls) -> None:
    """The gradients of ``calls`` that ``fit``.

    Raises:
        ValueError: a shape or stride that does not fit, as of ``lora_gradient``.
    """
    given: dict = {}
    for i in range(MOST):
        dy, x, u, dU, sizes, scale, slots, dA, dBt, accumulate = calls[i] if i < len(calls) else calls[0]
        here = i < len(calls)
        if here:
            checked_plan("lora_gradient", dy, x, u, dU, sizes, scale, slots, dA, dBt)
        tensors = dict(dy=dy, x=x, u=u, dU=dU, dA=dA, dBt=dBt)
        own = {**tensors, **{f"{name}_stride": t.stride(0) for name, t in tensors.items()}, "b_row": dBt.stride(1), "scale": scale}
        own |= dict(K=x.shape[1], W=dA.shape[1]) if here else dict(K=0, W=0)  # an absent linear has no tiles
        given |= {f"{name}{i}": value for name, value in own.items()}
        given |= {f"O{i}{p}": size for p, size in enumerate(three(sizes if here else ()))}
    rank, streams = dBt.shape[1], len(slots)
    constexprs, options = constants(dy.dtype, rank)
    T = len(dy) // streams
    given |= dict(slots=slots, T=T, chunks=max(1, triton.cdiv(T, CHUNK)))
    count = sum(programs(call[1].shape[1], call[4], rank, constexprs["BR"]) for call in calls)
    launch(dynadapt_lora_gradient_together, (count, streams), given, ACCUMULATE=accumulate, **constexprs, **options)


_TYPES = {f"{name}{i}": kind for name, kind in TYPES.items() if name in ("dy", "x", "u", "dU", "dA", "dBt") for i in range(MOST)}
_TYPES |= {f"scale{i}": "fp32" for i in range(MOST)} | {"slots": "*i32"}


def _variants():
    for dtype, ranks, short in ((torch.bfloat16, (16, 64, 128), "bf16"), (torch.float32, (16,), "fp32")):
        for rank in ranks:
            constexprs, options = constants(dtype, rank)
            fixed = {**constexprs, "ACCUMULATE": rank == 64}
            tensor_core = dtype == torch.bfloat16
            yield variant(
                f"r{rank} {short}", dynadapt_lora_gradient_together, _TYPES, fixed, dtype=short, tensor_core=tensor_core, **options
            )


VARIANTS: list[Variant] = list(_variants())
