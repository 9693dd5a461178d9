"""Matrix: a weight [N, K] in the form its backend multiplies with.

``DenseMatrix`` is the reference: the plain tensor. The native ``PackedMatrix`` keeps the same values
packed in panels, or the blocks of integers that they are made from (quants.py), and offers the same methods.
"""

from __future__ import annotations

import torch

from .dispatch import native_module
from .int8 import Int8Matrix


class DenseMatrix:
    """A weight [N, K] (out features, in features) kept as a plain tensor."""

    def __init__(self, weight: torch.Tensor, copy: bool = True):
        if weight.dim() != 2:
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected [N, K]")
        self.weight = weight.contiguous().clone() if copy else weight

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T [n, N], x [n, K]."""
        return x @ self.weight.t()

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        """h W^T [n, N] as the cross-entropy has it."""
        return self.times(h)

    def times_transposed(self, dy: torch.Tensor) -> torch.Tensor:
        """dy W [n, K], dy [n, N]."""
        return dy @ self.weight

    def gather_rows(self, index: torch.Tensor, out: torch.Tensor) -> None:
        """out [n, K] = weight[index], index int64 [n]."""
        torch.index_select(self.weight, 0, index, out=out)

    def update_rows(self, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        """weight[rows] = values rounded to the weight's dtype; rows int32 [n], None for all."""
        if rows is None:
            self.weight.copy_(values)
        else:
            self.weight[rows.long()] = values.to(self.weight.dtype)

    def unpack(self, out: torch.Tensor) -> None:
        """out [N, K] = weight."""
        out.copy_(self.weight)


def make_matrix(weight: torch.Tensor, backend: str, dtype: torch.dtype, device="cpu"):
    """The backend's matrix holding ``weight`` [N, K] in ``dtype``."""
    weight = weight.detach().to(device=device, dtype=dtype).contiguous()
    if backend != "cpu":
        return DenseMatrix(weight)
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weight has dtype {weight.dtype}: the CPU kernels take torch.float32 or torch.bfloat16")
    return native_module().PackedMatrix(weight)


def make_int8_matrix(weight: torch.Tensor, backend: str, dtype: torch.dtype):
    """The backend's matrix holding ``weight`` [N, K] in int8, for activations in ``dtype`` (ops/int8.py)."""
    weight = weight.detach().float().contiguous()
    if backend != "cpu":
        return Int8Matrix(weight, dtype)
    return native_module().PackedMatrix.int8(weight, str(dtype).removeprefix("torch."))


def make_parts(weights, backend: str, dtype: torch.dtype, device="cpu") -> list:
    """The backend's matrices of weights [O_p, K] that read the same input.

    Plain tensors lie side by side as views of one [sum O_p, K], so that one product can serve them all.
    """
    if backend == "cpu":
        return [make_matrix(w, backend, dtype) for w in weights]
    whole = torch.cat([w.detach().to(device=device, dtype=dtype) for w in weights])
    return [DenseMatrix(view, copy=False) for view in whole.split([w.shape[0] for w in weights])]
