"""What a function class is: a distribution over functions from R^d to R, from which one function a prompt is drawn.

    functions = kind.sample(prompts, generator)          # the parameters of `prompts` functions, on the generator's device
    y = kind.observe(functions, x, generator)            # [B, N] from x [B, N, d]; with the class's noise where it has one

Everything is batched over prompts and made on the device of the `torch.Generator`, which is the only source of chance. Nothing
waits for the device, so prompts can be made inside a training loop without the host noticing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

Functions = dict[str, Any]  # the parameters of B functions by name: tensors [B, ...], or again such dictionaries


class IclError(ValueError):
    """A function class, a mixture, an input distribution or a baseline that can't be had; the message names the value."""


def check_number(what: str, value: float, least: float = -math.inf, above: bool = False) -> float:
    """The value as a float; IclError unless it is finite and at least (or above) `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise IclError(f"{what} {value!r}: give a finite number")
    if value < least or (above and value == least):
        raise IclError(f"{what} {value!r}: give a number {'above' if above else 'of at least'} {least:g}")
    return float(value)


def check_count(what: str, value: int, least: int = 1, most: int | None = None, why: str = "") -> int:
    """The value, a whole number from `least` to `most`; IclError otherwise, with `why` where there is a most."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise IclError(f"{what} {value!r}: give a whole number")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}{why}"
        raise IclError(f"{what} {value}: give {limits}")
    return value


def check_range(what: str, values: tuple[float, float], least: float = -math.inf) -> tuple[float, float]:
    """(low, high) with low <= high; IclError otherwise."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise IclError(f"{what} {values!r}: give (low, high)")
    low, high = (check_number(what, value, least) for value in values)
    if low > high:
        raise IclError(f"{what} {values!r}: low is above high")
    return low, high


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=dtype) * (high - low) + low


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
    def sample(self, prompts: int, generator: torch.Generator, *, active: int | Tensor | None = None,
               dtype: torch.dtype = torch.float32) -> Functions:
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
        return {"name": self.name, "dims": self.dims, "scale": self.scale, **self._settings()}

    def _settings(self) -> dict:
        return {}
