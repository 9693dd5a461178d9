"""Frozen weights in int8 with a scale per row and group, multiplied with activations that are quantised in the same groups.

With groups g of 64 along the contraction (the last one may be shorter):

    s_ig = max_{j in g} |x_ij| / 127,   q_ij = round(x_ij / s_ig)          round: half to even
    (x W^T)_io = sum_g s^x_ig s^W_og sum_{j in g} q^x_ij q^W_oj

The inner sums are of whole numbers and exact, so that every processor has the same; the outer one is in float32, groups in order.

dy W contracts over rows instead, along which the scales of W vary. There W' = s^W q^W (one float32 multiplication an element) is
quantised once more, with groups of 64 rows of each part, and so is dy:

    (dy W)_ij = sum_g s^dy_ig s^W'_gj sum_{o in g} q^dy_io q^W'_oj

The linear cross-entropy has its logits from the first product, with activations of fifteen bits: s_ig = max |x_ij| / 32512. Its d-hidden,
whose probabilities span too many powers of two for seven bits, takes W' rounded to the activations' dtype. Adapters, norms, attention
and updates stay in that dtype.

A group with a value that is not finite makes what it reaches NaN; scales are at least 2^-100.

Source of the scheme: Dettmers et al. 2022, LLM.int8() (arXiv 2208.07339), section 2 (absolute maximum, vector-wise), with groups in
the place of whole rows, as Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), have them.
"""

from __future__ import annotations

import torch

from .precision import wide_dtype

GROUP = 64
LARGEST = 127.0
LARGEST_OF_HEAD = 127.0 * 256  # of the activations that logits are made from: two digits of base 256, each in eight bits
SMALLEST_SCALE = 2.0**-100  # of a group of zeros


def group_count(size: int) -> int:
    """Groups along a contraction of ``size``."""
    return -(-size // GROUP)


def quantize_groups(x: torch.Tensor, largest: float = LARGEST) -> tuple[torch.Tensor, torch.Tensor]:
    """(q [N, K], scale float32 [N, groups]) of x [N, K]; q is int8 within +-127, or int16 within a ``largest`` beyond that.

    A group that is not finite has q = 0 and a scale of NaN.
    """
    n, k = x.shape
    wide = torch.nn.functional.pad(x.float(), (0, group_count(k) * GROUP - k)).view(n, -1, GROUP)
    scale = (wide.abs().amax(2) / largest).clamp(min=SMALLEST_SCALE)
    q = (wide * (1.0 / scale)[:, :, None]).round()
    finite = torch.isfinite(scale)
    q = torch.where(finite[:, :, None], q, 0.0).to(torch.int8 if largest <= LARGEST else torch.int16).reshape(n, -1)[:, :k]
    return q, torch.where(finite, scale, float("nan"))


def dequantize(q: torch.Tensor, scale: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """q s [N, K], computed in ``dtype``."""
    return q.to(dtype) * scale.to(dtype).repeat_interleave(GROUP, 1)[:, : q.shape[1]]


def product(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, largest: float = LARGEST) -> torch.Tensor:
    """x W^T [N, O] in float32, or in float64 where x is, as the quantised product gives it."""
    wide = wide_dtype(x.dtype)
    return dequantize(*quantize_groups(x, largest), wide) @ dequantize(q, scale, wide).t()


class Int8Matrix:
    """A weight [N, K] as int8 with a scale per row and group of 64 columns: the reference of what the kernels keep in panels.

    ``dtype`` is that of the activations that it multiplies, and of its rows where they are read.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype):
        if weight.dim() != 2:
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected [N, K]")
        self.q, self.scale = quantize_groups(weight)
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        return self.q.numel() + 4 * self.scale.numel()

    @property
    def weight(self) -> torch.Tensor:
        """W' [N, K] in ``dtype``."""
        return dequantize(self.q, self.scale).to(self.dtype)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T [n, N] in float32 or wider, x [n, K]."""
        return product(x, self.q, self.scale)

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        """h W^T [n, N] as the cross-entropy has it, h [n, K] in fifteen bits."""
        return product(h, self.q, self.scale, LARGEST_OF_HEAD)

    def times_transposed(self, dy: torch.Tensor) -> torch.Tensor:
        """dy W [n, K] in float32 or wider, dy [n, N]."""
        return product(dy, *quantize_groups(dequantize(self.q, self.scale).t()))

    def gather_rows(self, index: torch.Tensor, out: torch.Tensor) -> None:
        """out [n, K] = W'[index], index int64 [n]."""
        out.copy_(dequantize(self.q[index], self.scale[index]))

    def update_rows(self, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        raise ValueError("update_rows: the matrix holds int8, which learns nothing; make it with base='same'")

    def unpack(self, out: torch.Tensor) -> None:
        """out [N, K] = W'."""
        out.copy_(dequantize(self.q, self.scale))
