"""Predictors that are optimal where the prior is known. For Gaussian weights and noise that is ridge (baselines.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from .baselines import before, check_prompts
from .combine import SUM_TOLERANCE
from .function_class import IclError, check_count, check_number

MOST_SUPPORTS = 20_000
CHUNK = 1 << 24  # numbers in the largest temporary


def discrete_posterior(x: Tensor, y: Tensor, query: Tensor | None = None, *, tasks: Tensor, noise: float) -> Tensor:
    """The posterior mean when w is one of `tasks` [M, d] with equal chance and y = w x + noise N(0, 1): dMMSE of Raventós et al. (arXiv
    2306.15063, mansheej/icl-task-diversity icl/models.py). At k = 0 the mean task answers. float64 inside."""
    query = check_prompts(x, y, query)
    noise = check_number("discrete_posterior: noise", noise, 0.0, above=True)
    if tasks.ndim != 2 or tasks.shape[1] != x.shape[2]:
        raise IclError(f"discrete_posterior: tasks have shape {tuple(tasks.shape)}; give [tasks, {x.shape[2]}]")
    pool = tasks.to(x.device, torch.float64).T  # [d, M]
    rows = max(1, CHUNK // (x.shape[1] * tasks.shape[0]))
    parts = []
    for examples, labels, asked in zip(x.split(rows), y.split(rows), query.split(rows)):
        misfit = (labels.double()[:, :, None] - examples.double() @ pool).square()  # [B, N, M]
        posterior = (before(misfit) / (-2 * noise**2)).softmax(2)
        parts.append((posterior * (asked.double() @ pool)).sum(2))
    return torch.cat(parts).to(y.dtype)


def linear_mixture_posterior(
    x: Tensor,
    y: Tensor,
    query: Tensor | None = None,
    *,
    nonzeros: Sequence[int],
    weights: Sequence[float] | None = None,
    noise: float = 1e-3,
    divisors: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """(posterior mean of the answer [B, N], probability of each class after k examples [B, N, classes]).

    Class i, of prior chance weights[i], is linear with nonzeros[i] weights N(0, 1) at uniformly random coordinates and the others zero;
    nonzeros = d is the dense class, so that (d, 2) is the mixture of Yadlowsky et al. (arXiv 2311.00871). y = w x + noise N(0, 1).
    divisors: by which the outputs of each class are divided (default: 1), so that its non-zero weights are N(0, 1 / divisor^2).
    Noise-free functions are the limit of small noise; the default is small enough for errors down to noise^2.

    Exact: every set of coordinates is a hypothesis with its own Gaussian posterior over w, updated one example at a time in float64; the
    probability of a set is the product of its predictive densities. At most 20,000 sets.
    """
    query = check_prompts(x, y, query)
    prompts, points, dims = x.shape
    variance = check_number("linear_mixture_posterior: noise", noise, 0.0, above=True) ** 2
    counts = [check_count("linear_mixture_posterior: nonzeros", count, 1, dims, f", since x has {dims} dimensions") for count in nonzeros]
    weights = [1 / len(counts)] * len(counts) if weights is None and counts else list(weights or ())
    if not counts or len(weights) != len(counts):
        raise IclError(f"linear_mixture_posterior: {len(counts)} classes and {len(weights)} weights")
    if min(weights) < 0 or abs(sum(weights) - 1) > SUM_TOLERANCE:
        raise IclError(f"linear_mixture_posterior: the weights {weights} are not chances that sum to one")
    divisors = [1.0] * len(counts) if divisors is None else list(divisors)
    if len(divisors) != len(counts):
        raise IclError(f"linear_mixture_posterior: {len(counts)} classes and {len(divisors)} divisors")
    divisors = [check_number("linear_mixture_posterior: divisor", divisor, 0.0, above=True) for divisor in divisors]
    for count in counts:
        if math.comb(dims, count) > MOST_SUPPORTS:
            raise IclError(
                f"linear_mixture_posterior: {count} non-zeros of {dims} are {math.comb(dims, count)} sets; at most {MOST_SUPPORTS}"
            )
    supports = [torch.tensor(list(combinations(range(dims), count)), device=x.device) for count in counts]  # [M, s] each
    rows = max(1, CHUNK // max(chosen.numel() * chosen.shape[1] for chosen in supports))
    answers, chances = [], []
    for part in zip(x.double().split(rows), y.double().split(rows), query.double().split(rows)):
        by_class = [_class_posterior(*part, chosen, variance, divisor) for chosen, divisor in zip(supports, divisors)]
        prior = torch.tensor(weights, dtype=torch.float64, device=x.device).log()
        posterior = (torch.stack([evidence for _, evidence in by_class], dim=2) + prior).softmax(2)  # [B, N, classes]
        answers.append((posterior * torch.stack([answer for answer, _ in by_class], dim=2)).sum(2))
        chances.append(posterior)
    return torch.cat(answers).to(y.dtype), torch.cat(chances).to(y.dtype)


def linear_mixture(
    x: Tensor,
    y: Tensor,
    query: Tensor | None = None,
    *,
    nonzeros: Sequence[int],
    weights: Sequence[float] | None = None,
    noise: float = 1e-3,
    divisors: Sequence[float] | None = None,
) -> Tensor:
    """The posterior mean of linear_mixture_posterior alone, with baselines.py's signature."""
    return linear_mixture_posterior(x, y, query, nonzeros=nonzeros, weights=weights, noise=noise, divisors=divisors)[0]


def _class_posterior(x: Tensor, y: Tensor, query: Tensor, supports: Tensor, variance: float, divisor: float) -> tuple[Tensor, Tensor]:
    """(posterior mean of the answer [B, N], log density of the first k labels [B, N]) of one class with supports [M, s]."""
    prompts, points, _ = x.shape
    sets, size = supports.shape
    mean = x.new_zeros(prompts, sets, size)
    covariance = (torch.eye(size, dtype=x.dtype, device=x.device) / divisor**2).repeat(prompts, sets, 1, 1)  # [B, M, s, s]
    evidence = x.new_zeros(prompts, sets)
    answers, densities = [], []
    for k in range(points):
        chance = evidence.softmax(1)
        answers.append((chance * (query[:, k, supports] * mean).sum(2)).sum(1))
        densities.append(evidence.logsumexp(1) - math.log(sets))
        row = x[:, k, supports]  # [B, M, s]
        spread = (covariance @ row[..., None]).squeeze(3)
        predictive = variance + (row * spread).sum(2)
        error = y[:, k, None] - (row * mean).sum(2)
        evidence = evidence - 0.5 * (error.square() / predictive + predictive.log() + math.log(2 * math.pi))
        gain = spread / predictive[..., None]
        mean = mean + gain * error[..., None]
        covariance = covariance - gain[..., None] * spread[..., None, :]
    return torch.stack(answers, dim=1), torch.stack(densities, dim=1)
