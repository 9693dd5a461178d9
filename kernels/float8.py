"""Linear layers over a float8 base: quantise the rows of the input, cuBLAS's row-wise scaled product, the adapter beside it.

One launch quantises (x is read once, a row is held in registers between finding its scale and dividing by it) and one
multiplies. The adapter works in the working precision from the unquantised x: shrink, and an expand that adds onto the
product (low_rank.py). The product itself cannot add, so parts must come stacked, as ``Float8Weights`` has them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import low_rank
from .common import FUSION, INTERPRET, Variant, next_power_of_2, room, variant, wait_for_previous

FLOAT8 = torch.float8_e4m3fn
MAX_COLUMNS = 32768  # a row is held in the registers of one program
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)
_LARGEST: tl.constexpr = tl.constexpr(448.0)
_SMALLEST: tl.constexpr = tl.constexpr(2.0**-100)


@triton.jit
def _on_the_grid(x):
    """x rounded to a value that float8 e4m3 holds. The interpreter's own cast loses the carry of a mantissa that rounds up."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # 3 bits of mantissa, ties to even
    magic = 1.5 * 2.0**14  # adding it rounds to multiples of 2^-9
    return tl.where(tl.abs(x) < 2.0**-6, (x + magic) - magic, bits.to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["rows"])
def dynadapt_quantize_rows(x, q, scale, rows, stride, K: tl.constexpr, BK: tl.constexpr):
    wait_for_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BK)
    inside = column < K
    value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value))
    # a maximum may pass over NaN: the sum does not
    largest = tl.where(tl.sum(value * 0.0) == 0.0, largest, float("nan"))
    s = tl.where(largest / _LARGEST < _SMALLEST, _SMALLEST, largest / _LARGEST)
    tl.store(scale + row, s)
    scaled = value / s
    scaled = tl.where(scaled > _LARGEST, _LARGEST, tl.where(scaled < -_LARGEST, -_LARGEST, scaled))
    if _INTERPRET:
        scaled = _on_the_grid(scaled)
    tl.store(q + row * K + column, scaled.to(tl.float8e4nv), mask=inside)


def quantize_rows(x, q, scale) -> None:
    """q float8 [N, K] and scale float32 [N] of x [N, K] (rows may be padded), as ``dynadapt.ops.float8.quantize_rows``."""
    rows, k = x.shape
    if k > MAX_COLUMNS:
        raise ValueError(f"quantize_rows: x has {k} columns, accepted is up to {MAX_COLUMNS}")
    width = next_power_of_2(k)
    dynadapt_quantize_rows[(rows,)](x, q, scale, rows, x.stride(0), K=k, BK=width, num_warps=_warps(width), **FUSION)


def _warps(width: int) -> int:
    """About 16 values a thread."""
    return max(1, min(16, width // 512))


def product(x, q, scale, out) -> None:
    """out [N, O] = x W^T for W = diag(scale) q, q float8 [O, K]: quantised here, multiplied by cuBLAS."""
    n, k = x.shape
    if k % 16 or q.shape[0] % 16:
        raise ValueError(f"float8 product: the weight is {tuple(q.shape)}, accepted are sizes divisible by 16")
    xq = room(x.device, "float8 x", n, k, dtype=FLOAT8)
    sx = room(x.device, "float8 scale", n)
    quantize_rows(x, xq, sx)
    # no fast accumulation: tensor cores would add up float8 products in fewer bits than float32 has
    torch.ops.aten._scaled_mm.out(xq, q.t(), sx[:, None], scale[None, :], out_dtype=out.dtype, use_fast_accum=False, out=out)


def forward(x, weights, bias, A, Bt, slots, scale, u, y) -> None:
    """``linear_forward`` over ``Float8Weights``."""
    product(x, weights.q, weights.scale, y)
    if A is not None:
        low_rank.forward(x, A, Bt, slots, scale, bias, list(weights.part_sizes), u, y, onto=True)
    elif bias is not None:
        y.add_(bias)


def backward(dy, weights, A, Bt, slots, scale, dU, dx) -> None:
    """``linear_backward`` over ``Float8Weights``."""
    if dx is not None:
        product(dy, weights.q_transposed, weights.scale_transposed, dx)
    if A is not None:
        low_rank.backward(dy, A, Bt, slots, scale, list(weights.part_sizes), dU, dx, onto=True)


_TYPES = {"x": "*bf16", "q": "*fp8e4nv", "scale": "*fp32"}


def _variant(k: int) -> Variant:
    width = next_power_of_2(k)
    archs = (90, 100)  # sm_80 has no float8
    return variant(f"K={k}", dynadapt_quantize_rows, _TYPES, {"K": k, "BK": width}, num_warps=_warps(width), archs=archs)


VARIANTS = [_variant(k) for k in (576, 1536, 4096, 14336)]
