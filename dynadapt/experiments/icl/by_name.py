"""Function classes, distributions of x and baselines by their names; a setting that one does not have is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from dynadapt.common.named import check_named

from .checks import IclError
from .combine import ConvexCombination, Mixture
from .function_class import FunctionClass
from .inputs import INPUTS, Inputs
from .linear import DenseLinear, NoisyLinear, Quadratic, SparseLinear
from .nonlinear import DecisionTree, ReluNetwork
from .periodic import FourierSeries, Sinusoid
from .unit_variance import UnitVariance

FUNCTION_CLASSES: dict[str, type[FunctionClass]] = {
    kind.name: kind for kind in (DenseLinear, SparseLinear, NoisyLinear, Quadratic, ReluNetwork, DecisionTree, Sinusoid, FourierSeries)
}


def make_function_class(name: str, dims: int, **settings) -> FunctionClass:
    """The function class of this name; also what `describe` wrote, of mixtures and combinations too (these are then given whole).
    IclError for a name or a setting that doesn't exist."""
    for key in {Mixture.name: ("classes",), ConvexCombination.name: ("first", "second"), UnitVariance.name: ("of",)}.get(name, ()):
        if key not in settings:
            raise IclError(f"function class {name!r}: setting {key!r} is missing")
    if name == Mixture.name:
        parts = [make_function_class(**{"dims": dims, **part}) for part in settings["classes"]]
        return Mixture(parts, settings.get("weights"), per=settings.get("per", "prompt"))
    if name == ConvexCombination.name:
        parts = [make_function_class(**{"dims": dims, **settings[key]}) for key in ("first", "second")]
        return ConvexCombination(*parts, settings.get("weight", 0.5))
    if name == UnitVariance.name:
        return UnitVariance(make_function_class(**{"dims": dims, **settings["of"]}))
    check_named("function class", FUNCTION_CLASSES, name, settings, IclError)
    return FUNCTION_CLASSES[name](dims, **settings)


def make_inputs(name: str, **settings) -> Inputs:
    """The distribution of x of this name. IclError for a name or a setting that doesn't exist."""
    check_named("inputs", INPUTS, name, settings, IclError)
    return INPUTS[name](**settings)


@cache
def baselines_by_name() -> dict[str, Callable]:
    """Every baseline. They need torch, which takes seconds; to describe a class needs none."""
    from .baselines import averaging, least_squares, nearest_neighbours, ridge, zero
    from .bayes import discrete_posterior, linear_mixture
    from .gradient_descent import network_gradient_descent
    from .lasso_path import lasso

    bayes = (discrete_posterior, linear_mixture)
    every = (zero, averaging, nearest_neighbours, least_squares, ridge, lasso, network_gradient_descent, *bayes)
    return {baseline.__name__: baseline for baseline in every}


def make_baseline(name: str, **settings):
    """The baseline of this name as predict(x [B, N, d], y [B, N], query [B, N, d] or None) -> [B, N] (baselines.py). IclError for a name or
    a setting that doesn't exist, or one that is missing."""
    baselines = baselines_by_name()
    check_named("baseline", baselines, name, settings, IclError)
    return partial(baselines[name], **settings)
