"""What a function class is: a distribution over functions from R^d to R, from which one function a prompt is drawn.

    functions = kind.sample(prompts, generator)          # the parameters of `prompts` functions, on the generator's device
    y = kind.observe(functions, x, generator)            # [B, N] from x [B, N, d]; with the class's noise where it has one

Everything is batched over prompts and made on the device of the `torch.Generator`, which is the only source of chance. Nothing
waits for the device, so prompts can be made inside a training loop without the host noticing.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from .checks import IclError, check_count, check_number, check_range
from .lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FunctionClass", "Functions", "IclError", "check_count", "check_number", "check_range", "normal", "uniform"]
Functions = dict[str, Any]  # the parameters of B functions by name: tensors [B, ...], or again such dictionaries


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """dtype None, here and everywhere in these classes: float32."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype or torch.float32)


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=dtype or torch.float32) * (high - low) + low


class FunctionClass(ABC):
    """dims: the dimension d of x. scale: what y is multiplied by (an out-of-distribution test when it is not 1).

    `normaliser` is what Garg et al. divide squared errors by: E[f(x)^2] for x ~ N(0, I) and scale 1, so that predicting zero
    has error 1 (scale^2 for another scale, since their division doesn't know of it).
    """

    name: ClassVar[str]

    def __init__(self, dims: int, *, scale: float = 1.0):
        self.dims = check_count(f"{self.name}: dims", dims)
        self.scale = check_number(f"{self.name}: scale", scale)

    @property
    @abstractmethod
    def normaliser(self) -> float: ...

    @abstractmethod
    def sample(
        self, prompts: int, generator: torch.Generator, *, active: int | Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Functions:
        """Parameters of `prompts` functions. active: only the first so many coordinates of x are non-zero (a curriculum); an int or a
        0-d tensor on the device. Only classes that choose coordinates look at it."""

    @abstractmethod
    def _values(self, functions: Functions, x: Tensor) -> Tensor:
        """[B, N]: f(x) before scaling."""

    def values(self, functions: Functions, x: Tensor) -> Tensor:
        """[B, N]: f(x) without noise, of x [B, N, dims]. Functions of one prompt (B = 1) serve any number of rows."""
        if x.ndim != 3 or x.shape[2] != self.dims:
            raise IclError(f"{self.name}: x has shape {tuple(x.shape)}; give [prompts, points, {self.dims}]")
        values = self._values(functions, x)
        return values if self.scale == 1.0 else values * self.scale

    def observe(self, functions: Functions, x: Tensor, generator: torch.Generator) -> Tensor:
        """[B, N]: what the prompt shows of f(x); a class with noise draws it here."""
        return self.values(functions, x)

    def describe(self) -> dict:
        """The settings as JSON-able data, enough for `make_function_class` to make the same class."""
        names = [name for name, of in inspect.signature(type(self)).parameters.items() if of.kind is of.KEYWORD_ONLY and name != "scale"]
        own = {name: getattr(self, name) for name in names}
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {"name": self.name, "dims": self.dims, "scale": self.scale, **own}
