"""In-context learning of function classes (Garg et al., arXiv 2208.01066; Yadlowsky et al., arXiv 2311.00871): the classes, prompts of
(x, f(x)) pairs, what the best known predictors make of them, and errors by number of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynadapt.common.lazy import lazily

from .by_name import FUNCTION_CLASSES, make_baseline, make_function_class, make_inputs
from .checks import IclError
from .combine import ConvexCombination, Mixture
from .function_class import FunctionClass, Functions
from .inputs import INPUTS, Inputs
from .linear import DenseLinear, NoisyLinear, Quadratic, SparseLinear
from .nonlinear import DecisionTree, ReluNetwork
from .periodic import FourierSeries, Sinusoid
from .unit_variance import UnitVariance

if TYPE_CHECKING:
    from .baselines import averaging, least_squares, nearest_neighbours, ridge, zero
    from .bayes import discrete_posterior, linear_mixture, linear_mixture_posterior
    from .evaluate import Case, Curve, by_nonzeros, curves, out_of_distribution, sequence_predictor, squared_errors, summarise
    from .gradient_descent import network_gradient_descent
    from .lasso_path import lasso
    from .line_wave import line_or_wave, line_or_wave_posterior
    from .noise_free import noise_free_bayes, noise_free_mixture
    from .prompts import Prompts, draw, interleaved

# Name -> the module that has it, imported when it is asked for: these need torch, which takes seconds; to describe a class needs none.
_HOMES = {
    "BASELINES": "applicable_baselines",
    **dict.fromkeys(("averaging", "least_squares", "nearest_neighbours", "ridge", "zero"), "baselines"),
    **dict.fromkeys(("discrete_posterior", "linear_mixture", "linear_mixture_posterior"), "bayes"),
    **dict.fromkeys(
        ("Case", "Curve", "by_nonzeros", "curves", "out_of_distribution", "sequence_predictor", "squared_errors", "summarise"), "evaluate"
    ),
    "network_gradient_descent": "gradient_descent",
    "lasso": "lasso_path",
    **dict.fromkeys(("line_or_wave", "line_or_wave_posterior"), "line_wave"),
    **dict.fromkeys(("noise_free_bayes", "noise_free_mixture"), "noise_free"),
    **dict.fromkeys(("Prompts", "draw", "interleaved"), "prompts"),
}

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
    "UnitVariance",
    "averaging",
    "by_nonzeros",
    "curves",
    "discrete_posterior",
    "draw",
    "interleaved",
    "lasso",
    "line_or_wave",
    "line_or_wave_posterior",
    "least_squares",
    "linear_mixture",
    "linear_mixture_posterior",
    "load_run",
    "make_baseline",
    "make_function_class",
    "make_inputs",
    "nearest_neighbours",
    "network_gradient_descent",
    "noise_free_bayes",
    "noise_free_mixture",
    "out_of_distribution",
    "ridge",
    "sequence_predictor",
    "squared_errors",
    "summarise",
    "zero",
]


__getattr__ = lazily(__name__, _HOMES)


def load_run(path, step: int | None = None, **where):
    """The trained `Regressor` of a run directory (train.py)."""
    from .train import load_run as load  # the engine is loaded by those who train or read models, not by those who draw prompts

    return load(path, step, **where)
