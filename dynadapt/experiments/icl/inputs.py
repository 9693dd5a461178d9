"""Distributions of x, among them the out-of-distribution tests of Garg et al. (arXiv 2208.01066, dtsip/in-context-learning src/eval.py and
src/samplers.py). `sample` gives the x of the prompt; `queries` gives what is asked after each prefix where that is not the next x."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from .function_class import IclError, check_number, check_range, normal, uniform
from .lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class Inputs:
    """x ~ N(0, scale^2 I)."""

    name: ClassVar[str] = "gaussian"

    def __init__(self, *, scale: float = 1.0):
        self.scale = check_number(f"{self.name}: scale", scale, 0.0, above=True)

    def sample(self, prompts: int, points: int, dims: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """x [prompts, points, dims]."""
        x = normal(generator, prompts, points, dims, dtype=dtype)
        return x if self.scale == 1.0 else x * self.scale

    def queries(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(x of the prompt, queries [B, N, d]) from the sampled x [B, N, d]. Query k is asked after the first k examples; None: the
        next x of the prompt."""
        return x, None


class Uniform(Inputs):
    """x ~ U(low, high) in every coordinate; -5 to 5 are those of Finn et al. and Panwar et al."""

    name = "uniform"

    def __init__(self, *, low: float = -5.0, high: float = 5.0):
        super().__init__()
        self.low, self.high = check_range("uniform: low, high", (low, high))

    def sample(self, prompts, points, dims, generator, dtype=None):
        return uniform(generator, prompts, points, dims, low=self.low, high=self.high, dtype=dtype)


class _Transformed(Inputs):
    """x = z U diag(e) U^T with z ~ N(0, I); e is scaled so that E|x|^2 = d. U is one random rotation, drawn with `seed`: all prompts share
    it, as in the source."""

    def __init__(self, *, seed: int = 0):
        super().__init__()
        self.seed = seed
        self._matrices: dict[tuple, Tensor] = {}

    def eigenvalues(self, dims: int) -> Tensor:
        raise NotImplementedError

    def matrix(self, dims: int) -> Tensor:
        """[d, d] float64, symmetric."""
        rotation, _ = torch.linalg.qr(normal(torch.Generator().manual_seed(self.seed), dims, dims, dtype=torch.float64))
        size = self.eigenvalues(dims).double()
        return (rotation * size) @ rotation.T * math.sqrt(dims / float(size.square().sum()))

    def sample(self, prompts, points, dims, generator, dtype=None):
        dtype = dtype or torch.float32
        key = (dims, str(generator.device), dtype)
        if key not in self._matrices:
            self._matrices[key] = self.matrix(dims).to(generator.device, dtype)
        return normal(generator, prompts, points, dims, dtype=dtype) @ self._matrices[key]


class SkewedSpectrum(_Transformed):
    """Standard deviations 1, 1/2, 1/3, ... along random axes."""

    name = "skewed"

    def eigenvalues(self, dims):
        return 1 / torch.arange(1, dims + 1)


class HalfSubspace(_Transformed):
    """x lies in a random subspace of floor(d / 2) dimensions."""

    name = "half_subspace"

    def eigenvalues(self, dims):
        if dims < 2:
            raise IclError(f"half_subspace: dims {dims}: give at least 2")
        return (torch.arange(dims) < dims // 2).float()


class RandomQuadrants(Inputs):
    """All x of a prompt lie in one random orthant, the queries anywhere."""

    name = "random_quadrants"

    def queries(self, x, generator):
        signs = normal(generator, x.shape[0], 1, x.shape[2], dtype=x.dtype).sign()
        return x.abs() * signs, x


class OppositeQuadrants(RandomQuadrants):
    """All x of a prompt lie in one random orthant, the queries in the opposite one."""

    name = "opposite_quadrants"

    def queries(self, x, generator):
        shown, _ = super().queries(x, generator)
        return shown, -shown


class Orthogonal(Inputs):
    """Query k is orthogonal to the first k x, as long as the x that it replaces. At most `dims` points: then no direction is left."""

    name = "orthogonal"

    def queries(self, x, generator):
        points, dims = x.shape[1:]
        if points > dims:
            raise IclError(f"orthogonal: {points} points: after {dims} examples in {dims} dimensions no orthogonal query exists")
        axes, triangle = torch.linalg.qr(x.transpose(1, 2))  # column k of axes is x_k without its part in the span of x_0..x_(k-1)
        signs = triangle.diagonal(dim1=1, dim2=2).sign()  # [B, N]
        return x, axes.transpose(1, 2) * (signs * x.norm(dim=2))[:, :, None]


class Overlapping(Inputs):
    """Query k is one of the first k x, so that its y has been shown. Query 0 is the first x."""

    name = "overlapping"

    def queries(self, x, generator):
        prompts, points = x.shape[:2]
        seen = torch.arange(points, device=x.device)
        chosen = (uniform(generator, prompts, points) * seen).long()
        chosen = torch.minimum(chosen, (seen - 1).clamp(min=0))  # float32 rounding of the product may reach k
        return x, x.gather(1, chosen[:, :, None].expand_as(x))


INPUTS: dict[str, type[Inputs]] = {
    kind.name: kind for kind in (Inputs, Uniform, SkewedSpectrum, HalfSubspace, RandomQuadrants, OppositeQuadrants, Orthogonal, Overlapping)
}
