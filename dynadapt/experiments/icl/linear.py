"""Functions that are linear in their weights: dense, sparse and noisy linear, and quadratic. As in Garg et al. (arXiv 2208.01066,
dtsip/in-context-learning src/tasks.py); Raventós et al. (arXiv 2306.15063) have the noisy class with its tasks drawn from a pool."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .function_class import FunctionClass, Functions, IclError, check_count, check_number, normal, uniform
from .lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class DenseLinear(FunctionClass):
    """y = w x with w ~ N(0, I)."""

    name = "linear"

    @property
    def normaliser(self) -> float:
        return float(self.dims)

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        return {"w": normal(generator, prompts, self.dims, dtype=dtype)}  # [B, d]

    def _values(self, functions, x):
        return (x @ functions["w"][:, :, None]).squeeze(2)


class SparseLinear(DenseLinear):
    """y = w x where `nonzeros` coordinates of w are N(0, 1) and the others zero.

    The coordinates are drawn uniformly, among the first `active` ones where a curriculum says so (all of them if they are fewer).
    Garg et al. have 3 non-zeros of 20, Yadlowsky et al. (arXiv 2311.00871) 2 of 20.
    """

    name = "sparse_linear"

    def __init__(self, dims: int, *, nonzeros: int = 3, scale: float = 1.0):
        super().__init__(dims, scale=scale)
        self.nonzeros = check_count(f"{self.name}: nonzeros", nonzeros, 1, dims, f", since x has {dims} dimensions")

    @property
    def normaliser(self) -> float:
        return float(self.nonzeros)

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        order = uniform(generator, prompts, self.dims)  # the smallest keys win a coordinate
        if active is not None:
            order = torch.where(torch.arange(self.dims, device=order.device) < active, order, 2.0)
        chosen = order.topk(self.nonzeros, largest=False).indices  # [B, nonzeros]
        mask = torch.zeros_like(order, dtype=dtype or torch.float32).scatter_(1, chosen, 1.0)
        return {"w": normal(generator, prompts, self.dims, dtype=dtype) * mask * (order < 2.0)}


class NoisyLinear(DenseLinear):
    """y = w x + noise * N(0, 1), w ~ N(0, I), or one of `pool` tasks drawn once from N(0, I) with `pool_seed` (Raventós et al.).

    renormalise: y is brought back to the second moment of noiseless y, as in the noisy test of Garg et al. They divide by the standard
    deviation of the batch; here by its expectation sqrt(d + noise^2), so that a prompt doesn't depend on the others.
    """

    name = "noisy_linear"

    def __init__(
        self, dims: int, *, noise: float = 1.0, renormalise: bool = False, pool: int | None = None, pool_seed: int = 0, scale: float = 1.0
    ):
        super().__init__(dims, scale=scale)
        self.noise = check_number(f"{self.name}: noise", noise, 0.0)
        self.renormalise, self.pool_seed = renormalise, pool_seed
        self.pool = None if pool is None else check_count(f"{self.name}: pool", pool)
        self._tasks: dict[tuple, Tensor] = {}

    def tasks(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """[pool, d]: the tasks that w is drawn from."""
        if self.pool is None:
            raise IclError(f"{self.name}: w is drawn from N(0, I), not from a pool; give pool=N")
        dtype = dtype or torch.float32
        key = (str(device), dtype)
        if key not in self._tasks:
            drawn = normal(torch.Generator().manual_seed(self.pool_seed), self.pool, self.dims)
            self._tasks[key] = drawn.to(device, dtype)
        return self._tasks[key]

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        if self.pool is None:
            return super().sample(prompts, generator, active=active, dtype=dtype)
        index = torch.randint(self.pool, (prompts,), generator=generator, device=generator.device)
        return {"w": self.tasks(generator.device, dtype)[index]}

    def observe(self, functions, x, generator):
        values = self.values(functions, x)
        noisy = values + self.noise * normal(generator, *values.shape, dtype=values.dtype)
        return noisy * math.sqrt(self.dims / (self.dims + self.noise**2)) if self.renormalise else noisy


class Quadratic(DenseLinear):
    """y = sum_i w_i x_i^2 / sqrt(3), w ~ N(0, I); the root brings y to the scale of the linear class."""

    name = "quadratic"

    def _values(self, functions, x):
        return super()._values(functions, x.square()) / math.sqrt(3)
