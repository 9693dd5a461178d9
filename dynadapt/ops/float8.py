"""Frozen weights in float8 with a scale per row, multiplied with activations that are quantised row by row.

    s_i = max_j |x_ij| / 448,   q_ij = round_e4m3(x_ij / s_i)
    x W^T = diag(s_x) (q_x q_W^T) diag(s_W)

A scale per token and a scale per output both factor out of the sum over inputs, so the product itself runs in float8 and
its result is scaled once. d-input sums over outputs instead, and needs W^T with a scale per input: the weight is kept
twice, in two bytes a parameter together, as many as bfloat16 takes. Adapters, norms, attention and head stay in the
working precision.

Source of the format: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv 2209.05433), E4M3.
"""

from __future__ import annotations

import torch

from .precision import wide_dtype

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
SMALLEST_SCALE = 2.0**-100  # a row of zeros


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(q float8 [N, K], scale float32 [N]) of x [N, K]. A row that is not finite becomes NaN whole."""
    wide = x.float()
    scale = (wide.abs().amax(1) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (wide / scale[:, None]).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def dequantize(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 [N, K]."""
    return q.float() * scale[:, None]


class Float8Weights:
    """The stacked weights [sum O_p, K] of parts that read the same input, quantised for both products."""

    def __init__(self, weights, device="cpu"):
        whole = torch.cat([w.detach().to(device) for w in weights])
        self.part_sizes = tuple(w.shape[0] for w in weights)
        self.q, self.scale = quantize_rows(whole)  # [O, K], [O]
        self.q_transposed, self.scale_transposed = quantize_rows(whole.t().contiguous())  # [K, O], [K]

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.q.shape)

    @property
    def nbytes(self) -> int:
        tensors = (self.q, self.scale, self.q_transposed, self.scale_transposed)
        return sum(t.numel() * t.element_size() for t in tensors)


def product(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x W^T [N, O] in float32 or wider, as the quantised product gives it: the reference of the float8 path."""
    wide = wide_dtype(x.dtype)
    return dequantize(*quantize_rows(x)).to(wide) @ dequantize(q, scale).to(wide).t()
