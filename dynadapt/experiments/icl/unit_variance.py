"""A function class whose outputs are divided by their standard deviation, so that classes of different variance weigh alike in a loss."""

from __future__ import annotations

import math

from .combine import Mixture
from .function_class import FunctionClass, Functions, IclError


class UnitVariance(FunctionClass):
    """y = f(x) / sqrt(v) with f of the class `of` and v its `normaliser`, E[f(x)^2]; noise is divided with it.

    In a mixture of dense linear functions of d dimensions (v = d) and sparse ones with s non-zeros (v = s) the first have d / s times the
    squared error of the second to begin with, and so most of the training loss; divided, every class has as much of it as its weight.
    """

    name, normaliser = "unit_variance", 1.0

    def __init__(self, of: FunctionClass):
        if isinstance(of, Mixture):
            raise IclError("unit_variance: of a mixture every class is divided by itself: give the mixture's classes one by one")
        if isinstance(of, UnitVariance) or not isinstance(of, FunctionClass):
            raise IclError(f"unit_variance: {of!r} is not a function class in its own units")
        if of.scale != 1.0:
            raise IclError(
                f"unit_variance: {of.name} has scale {of.scale:g}: give the class at scale 1, since a scale is divided out again"
            )
        super().__init__(of.dims)
        self.of, self.divisor = of, math.sqrt(of.normaliser)

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        return self.of.sample(prompts, generator, active=active, dtype=dtype)

    def _values(self, functions, x):
        return self.of.values(functions, x) / self.divisor

    def observe(self, functions, x, generator):
        return self.of.observe(functions, x, generator) / self.divisor

    def describe(self):
        return {"name": self.name, "of": self.of.describe()}


def own_units(kind: FunctionClass) -> tuple[FunctionClass, float]:
    """(the class that was divided, what it was divided by); the class itself and 1 where it was not."""
    return (kind.of, kind.divisor) if isinstance(kind, UnitVariance) else (kind, 1.0)
