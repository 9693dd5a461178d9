"""In-context learning of function classes (Garg et al., arXiv 2208.01066; Yadlowsky et al., arXiv 2311.00871): the classes, prompts of
(x, f(x)) pairs, what the best known predictors make of them, and errors by number of examples."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from dynadapt.common.named import check_named

from .checks import IclError
from .combine import ConvexCombination, Mixture
from .function_class import FunctionClass, Functions
from .inputs import INPUTS, Inputs
from .linear import DenseLinear, NoisyLinear, Quadratic, SparseLinear
from .nonlinear import DecisionTree, ReluNetwork
from .periodic import FourierSeries, Sinusoid

if TYPE_CHECKING:
    from .baselines import averaging, least_squares, nearest_neighbours, ridge, zero
    from .bayes import discrete_posterior, linear_mixture, linear_mixture_posterior
    from .evaluate import Case, Curve, by_nonzeros, curves, out_of_distribution, sequence_predictor, squared_errors, summarise
    from .gradient_descent import network_gradient_descent
    from .lasso_path import lasso
    from .prompts import Prompts, draw, interleaved

FUNCTION_CLASSES: dict[str, type[FunctionClass]] = {
    kind.name: kind for kind in (DenseLinear, SparseLinear, NoisyLinear, Quadratic, ReluNetwork, DecisionTree, Sinusoid, FourierSeries)
}
# Name -> the module that has it, imported when it is asked for: these need torch, which takes seconds; to describe a class needs none.
_HOMES = {
    **dict.fromkeys(("averaging", "least_squares", "nearest_neighbours", "ridge", "zero"), "baselines"),
    **dict.fromkeys(("discrete_posterior", "linear_mixture", "linear_mixture_posterior"), "bayes"),
    **dict.fromkeys(
        ("Case", "Curve", "by_nonzeros", "curves", "out_of_distribution", "sequence_predictor", "squared_errors", "summarise"), "evaluate"
    ),
    "network_gradient_descent": "gradient_descent",
    "lasso": "lasso_path",
    **dict.fromkeys(("Prompts", "draw", "interleaved"), "prompts"),
}
_BASELINES = (
    "zero",
    "averaging",
    "nearest_neighbours",
    "least_squares",
    "ridge",
    "lasso",
    "network_gradient_descent",
    "discrete_posterior",
    "linear_mixture",
)

__all__ = [
    "BASELINES",
    "FUNCTION_CLASSES",
    "INPUTS",
    "Case",
    "ConvexCombination",
    "Curve",
    "DecisionTree",
    "DenseLinear",
    "FourierSeries",
    "FunctionClass",
    "Functions",
    "IclError",
    "Inputs",
    "Mixture",
    "NoisyLinear",
    "Prompts",
    "Quadratic",
    "ReluNetwork",
    "Sinusoid",
    "SparseLinear",
    "averaging",
    "by_nonzeros",
    "curves",
    "discrete_posterior",
    "draw",
    "interleaved",
    "lasso",
    "least_squares",
    "linear_mixture",
    "linear_mixture_posterior",
    "load_run",
    "make_baseline",
    "make_function_class",
    "make_inputs",
    "nearest_neighbours",
    "network_gradient_descent",
    "out_of_distribution",
    "ridge",
    "sequence_predictor",
    "squared_errors",
    "summarise",
    "zero",
]


def __getattr__(name: str):
    if name == "BASELINES":
        value = {baseline: getattr(import_module(f"{__name__}.{_HOMES[baseline]}"), baseline) for baseline in _BASELINES}
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def make_function_class(name: str, dims: int, **settings) -> FunctionClass:
    """The function class of this name; also what `describe` wrote, of mixtures and combinations too (these are then given whole).
    IclError for a name or a setting that doesn't exist."""
    for key in {Mixture.name: ("classes",), ConvexCombination.name: ("first", "second")}.get(name, ()):
        if key not in settings:
            raise IclError(f"function class {name!r}: setting {key!r} is missing")
    if name == Mixture.name:
        parts = [make_function_class(**{"dims": dims, **part}) for part in settings["classes"]]
        return Mixture(parts, settings.get("weights"), per=settings.get("per", "prompt"))
    if name == ConvexCombination.name:
        parts = [make_function_class(**{"dims": dims, **settings[key]}) for key in ("first", "second")]
        return ConvexCombination(*parts, settings.get("weight", 0.5))
    check_named("function class", FUNCTION_CLASSES, name, settings, IclError)
    return FUNCTION_CLASSES[name](dims, **settings)


def make_inputs(name: str, **settings) -> Inputs:
    """The distribution of x of this name. IclError for a name or a setting that doesn't exist."""
    check_named("inputs", INPUTS, name, settings, IclError)
    return INPUTS[name](**settings)


def make_baseline(name: str, **settings):
    """The baseline of this name as predict(x [B, N, d], y [B, N], query [B, N, d] or None) -> [B, N] (baselines.py). IclError for a name or
    a setting that doesn't exist, or one that is missing."""
    baselines = __getattr__("BASELINES")
    check_named("baseline", baselines, name, settings, IclError)
    return partial(baselines[name], **settings)


def load_run(path, step: int | None = None, **where):
    """The trained `Regressor` of a run directory (train.py)."""
    from .train import load_run as load  # the engine is loaded by those who train or read models, not by those who draw prompts

    return load(path, step, **where)
