"""Which baselines a function class is compared with: those of Garg et al. (arXiv 2208.01066), and the best predictor there is
where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .baselines import averaging, least_squares, nearest_neighbours, ridge, zero
from .bayes import discrete_posterior, linear_mixture
from .by_name import baselines_by_name
from .combine import ConvexCombination, Mixture
from .evaluate import Predict
from .function_class import FunctionClass
from .gradient_descent import network_gradient_descent
from .lasso_path import lasso
from .line_wave import line_or_wave
from .linear import DenseLinear, NoisyLinear, Quadratic, SparseLinear
from .nonlinear import ReluNetwork
from .periodic import FourierSeries, Sinusoid
from .unit_variance import UnitVariance, own_units

MOST_SETS = 2000  # of coordinates that a posterior over them is worth its time for: 3 non-zeros of 20 are 1,140
Basis = Callable[[Tensor], Tensor]  # x [B, N, d] -> features [B, N, f]

BASELINES = baselines_by_name()
TITLES = {
    "zero": "zero",
    "averaging": "averaging",
    "nearest_neighbours": "3 nearest neighbours",
    "least_squares": "least squares",
    "ridge": "ridge (Bayes)",
    "lasso": "Lasso, alpha 0.01",
    "network_gradient_descent": "two-layer network, gradient descent",
    "discrete_posterior": "posterior over the pool (Bayes)",
    "sparse_bayes": "Bayes, sparse prior",
    "mixture_bayes": "Bayes, prior of the mixture",
    "basis_least_squares": "least squares in the class's own basis",
}


def baselines_for(kind: FunctionClass, trained_on: FunctionClass | None = None) -> dict[str, Predict]:
    """The baselines that say something about `kind`, by their names in TITLES. trained_on: a mixture, whose exact posterior mean is then
    among them: of linear classes on any linear one, of lines and sinusoids on its own two classes alone."""
    prior = mixture_posterior(kind if isinstance(kind, Mixture) else trained_on, kind)
    if isinstance(kind, UnitVariance):
        found = {name: in_own_units(predict, kind.divisor) for name, predict in baselines_for(kind.of).items()}
        return {**found, "mixture_bayes": prior} if prior is not None else found
    found: dict[str, Predict] = {"zero": zero, "nearest_neighbours": nearest_neighbours, "least_squares": least_squares}
    if type(kind) in (DenseLinear, SparseLinear, NoisyLinear):
        found["averaging"] = averaging
    if isinstance(kind, SparseLinear):
        found["lasso"] = lasso
        if kind.scale == 1.0 and _countable(kind.dims, kind.nonzeros):
            found["sparse_bayes"] = partial(linear_mixture, nonzeros=(kind.nonzeros,))
    if isinstance(kind, NoisyLinear) and kind.noise > 0 and kind.scale != 0:
        found |= _noisy(kind)
    if isinstance(kind, ReluNetwork):
        found["network_gradient_descent"] = network_gradient_descent
    if type(kind) not in (DenseLinear, SparseLinear, NoisyLinear) and (basis := basis_of(kind)) is not None:
        found["basis_least_squares"] = in_basis(basis)
    if prior is not None:
        found["mixture_bayes"] = prior
    return {name: found[name] for name in TITLES if name in found}


def _countable(dims: int, nonzeros: int) -> bool:
    return math.comb(dims, nonzeros) <= MOST_SETS


def _noisy(kind: NoisyLinear) -> dict[str, Predict]:
    """Ridge doesn't change when y is rescaled; the pool's tasks and noise are rescaled with it."""
    if kind.pool is None:
        return {"ridge": partial(ridge, penalty=(kind.noise / kind.scale) ** 2)}
    size = math.sqrt(kind.dims / (kind.dims + kind.noise**2)) if kind.renormalise else 1.0

    def posterior(x: Tensor, y: Tensor, query: Tensor | None = None) -> Tensor:
        tasks = kind.tasks(x.device, x.dtype) * (kind.scale * size)
        return discrete_posterior(x, y, query, tasks=tasks, noise=kind.noise * size)

    return {"ridge": partial(ridge, penalty=(kind.noise / kind.scale) ** 2), "discrete_posterior": posterior}


def mixture_posterior(prior: FunctionClass | None, kind: FunctionClass | None = None) -> Predict | None:
    """The posterior mean under a mixture of noise-free linear classes, or of lines and sinusoids of one frequency, asked about functions of
    `kind`; None for anything else."""
    if not isinstance(prior, Mixture):
        return None
    parts = [own_units(part) for part in prior.classes]
    divisors = tuple(divisor for _, divisor in parts)
    nonzeros = [_nonzeros(part) for part, _ in parts]
    if None not in nonzeros and all(_countable(prior.dims, count) for count in nonzeros):
        return partial(linear_mixture, nonzeros=tuple(nonzeros), weights=prior.weights, divisors=divisors)
    asked = [kind.describe()] if kind is not None and not isinstance(kind, Mixture) else []
    if all(one in [part.describe() for part in prior.classes] for one in asked):
        return _line_or_wave([part for part, _ in parts], prior.weights, divisors)
    return None


def _line_or_wave(parts: list[FunctionClass], weights: tuple[float, ...], divisors: tuple[float, ...]) -> Predict | None:
    order = [index for kind in (DenseLinear, Sinusoid) for index, part in enumerate(parts) if type(part) is kind]
    if len(parts) != 2 or len(order) != 2 or parts[0].dims != 1 or parts[order[0]].scale != 1.0:
        return None
    wave = parts[order[1]]
    assert isinstance(wave, Sinusoid)
    if wave.scale != 1.0 or wave.frequency[0] != wave.frequency[1] or wave.frequency[0] == 0.0:
        return None
    taken = {"weights": [weights[index] for index in order], "divisors": [divisors[index] for index in order]}
    return partial(line_or_wave, amplitude=wave.amplitude, frequency=wave.frequency[0], **taken)


def in_own_units(predict: Predict, divisor: float) -> Predict:
    """A predictor for a class whose outputs were divided: it sees and answers as if they had not been."""
    return lambda x, y, query=None: predict(x, y * divisor, query) / divisor


def _nonzeros(kind: FunctionClass) -> int | None:
    if kind.scale != 1.0 or type(kind) not in (DenseLinear, SparseLinear):
        return None
    return kind.nonzeros if isinstance(kind, SparseLinear) else kind.dims


def basis_of(kind: FunctionClass) -> Basis | None:
    """Features in which every function of the class is linear; None where there are none that all functions share."""
    if isinstance(kind, ConvexCombination):
        bases = [basis_of(kind.first), basis_of(kind.second)]
        return None if None in bases else lambda x: torch.cat([basis(x) for basis in bases], dim=2)
    if isinstance(kind, Quadratic):
        return torch.square
    if type(kind) in (DenseLinear, SparseLinear):
        return lambda x: x
    if isinstance(kind, Sinusoid) and kind.frequency[0] == kind.frequency[1]:
        return lambda x: _waves(x, torch.tensor([kind.frequency[0]]).to(x))
    if isinstance(kind, FourierSeries):
        orders = torch.arange(1, kind.max_frequency + 1) * (math.pi / kind.period)
        return lambda x: _waves(x, orders.to(x))
    return None


def _waves(x: Tensor, frequencies: Tensor) -> Tensor:
    angle = x[:, :, :1] * frequencies  # [B, N, F]
    return torch.cat([angle.sin(), angle.cos()], dim=2)


def in_basis(basis: Basis) -> Predict:
    """Minimum-norm least squares on basis(x)."""
    return lambda x, y, query=None: least_squares(basis(x), y, basis(x if query is None else query))
