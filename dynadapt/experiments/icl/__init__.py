"""In-context learning of function classes (Garg et al., arXiv 2208.01066; Yadlowsky et al., arXiv 2311.00871): the classes, prompts of
(x, f(x)) pairs, what the best known predictors make of them, and errors by number of examples."""

from __future__ import annotations

import inspect

from .base import FunctionClass, Functions, IclError
from .combine import ConvexCombination, Mixture
from .inputs import INPUTS, Inputs
from .linear import DenseLinear, NoisyLinear, Quadratic, SparseLinear
from .nonlinear import DecisionTree, ReluNetwork
from .periodic import FourierSeries, Sinusoid
from .prompts import Prompts, draw, interleaved

FUNCTION_CLASSES: dict[str, type[FunctionClass]] = {
    kind.name: kind for kind in (DenseLinear, SparseLinear, NoisyLinear, Quadratic, ReluNetwork, DecisionTree, Sinusoid, FourierSeries)
}

__all__ = ["FUNCTION_CLASSES", "INPUTS", "ConvexCombination", "DecisionTree", "DenseLinear", "FourierSeries", "FunctionClass", "Functions",
           "IclError", "Inputs", "Mixture", "NoisyLinear", "Prompts", "Quadratic", "ReluNetwork", "Sinusoid", "SparseLinear", "draw",
           "interleaved", "make_function_class", "make_inputs"]


def _make(what: str, table: dict, name: str, given: tuple, settings: dict):
    if name not in table:
        raise IclError(f"{what} {name!r}: give one of {', '.join(table)}")
    accepted = [key for key, parameter in inspect.signature(table[name]).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for key in settings:
        if key not in accepted:
            raise IclError(f"{what} {name!r}: unknown setting {key!r}; it has {', '.join(accepted) or 'none'}")
    return table[name](*given, **settings)


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
    return _make("function class", FUNCTION_CLASSES, name, (dims,), settings)


def make_inputs(name: str, **settings) -> Inputs:
    """The distribution of x of this name. IclError for a name or a setting that doesn't exist."""
    return _make("inputs", INPUTS, name, (), settings)
