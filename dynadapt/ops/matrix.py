"""Matrix: a weight [N, K] in the form its backend multiplies with.

``DenseMatrix`` is the reference: the plain tensor. The native ``PackedMatrix`` keeps the same values
packed in panels and offers the same methods.
"""

from __future__ import annotations

import torch

from .dispatch import native_module


class DenseMatrix:
    """A weight [N, K] (out features, in features) kept as a plain tensor."""

    def __init__(self, weight: torch.Tensor):
        if weight.dim() != 2:
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected [N, K]")
        self.weight = weight.contiguous().clone()

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.weight.shape)

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    def gather_rows(self, index: torch.Tensor, out: torch.Tensor) -> None:
        """out [n, K] = weight[index], index int64 [n]."""
        out.copy_(self.weight[index])

    def update_rows(self, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        """weight[rows] = values rounded to the weight's dtype; rows int32 [n], None for all."""
        if rows is None:
            self.weight.copy_(values)
        else:
            self.weight[rows.long()] = values.to(self.weight.dtype)

    def unpack(self, out: torch.Tensor) -> None:
        """out [N, K] = weight."""
        out.copy_(self.weight)


def make_matrix(weight: torch.Tensor, backend: str, dtype: torch.dtype):
    """The backend's matrix holding ``weight`` [N, K] in ``dtype``."""
    weight = weight.detach().to(dtype).contiguous()
    if backend != "cpu":
        return DenseMatrix(weight)
    return native_module().PackedMatrix(weight)
