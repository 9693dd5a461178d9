"""The exact posterior of mixtures of linear classes without noise: the limit of `linear_mixture_posterior` (bayes.py) as its noise
goes to zero, in closed form.

A hypothesis is a set S of s coordinates with weights w ~ N(0, I / divisor^2). The density of y = X w + noise N(0, v) after k examples goes,
as v goes to zero, to

- N(y; 0, X_S X_S^T / divisor^2) for k <= s, and its answer is that of the shortest w through the examples;
- for k > s to (2 pi v)^(-(k - s) / 2) N(w; 0, I / divisor^2) / sqrt(det X_S^T X_S), where the least squares solution w fits all
  examples, and to zero faster than any power of v where it doesn't.

So of the sets that fit, those with the fewest coordinates below k have all the chance, and share it by the factors without v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from .baselines import check_prompts
from .function_class import IclError, check_count, check_number

FITS = 1e-7  # of the largest label: a misfit below is rounding, since y is float64
MOST_SETS = 2000


def noise_free_mixture(
    x: Tensor,
    y: Tensor,
    query: Tensor | None = None,
    *,
    nonzeros: Sequence[int],
    weights: Sequence[float] | None = None,
    divisors: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """(posterior mean of the answer [B, N], chance of each class after k examples [B, N, classes]); settings as of
    `linear_mixture_posterior`.

    x and y are float64, since fitting the examples is judged to 1e-7. IclError where no class fits the examples of a prompt: then
    none of them has its function; with a dense class among them every function fits.
    """
    query = check_prompts(x, y, query)
    if x.dtype != torch.float64 or y.dtype != torch.float64:
        raise IclError(f"noise_free_mixture: x is {x.dtype} and y {y.dtype}; give float64, in which examples can be told to fit")
    dims = x.shape[2]
    counts = [check_count("noise_free_mixture: nonzeros", count, 1, dims, f", since x has {dims} dimensions") for count in nonzeros]
    weights = [1 / len(counts)] * len(counts) if weights is None and counts else list(weights or ())
    divisors = [1.0] * len(counts) if divisors is None else list(divisors)
    if not counts or not len(counts) == len(weights) == len(divisors):
        raise IclError(f"noise_free_mixture: {len(counts)} classes, {len(weights)} weights and {len(divisors)} divisors")
    for count, weight, divisor in zip(counts, weights, divisors):
        check_number("noise_free_mixture: weight", weight, 0.0)
        check_number("noise_free_mixture: divisor", divisor, 0.0, above=True)
        if math.comb(dims, count) > MOST_SETS:
            raise IclError(f"noise_free_mixture: {count} non-zeros of {dims} are {math.comb(dims, count)} sets; at most {MOST_SETS}")
    prior = torch.tensor(weights, dtype=torch.float64, device=x.device)
    answers, chances = torch.zeros_like(y), (prior / prior.sum()).repeat(*y.shape, 1)
    for k in range(1, y.shape[1]):
        parts = [_class_after(x[:, :k], y[:, :k], query[:, k], count, divisor) for count, divisor in zip(counts, divisors)]
        sets = [part[0].shape[1] for part in parts]
        answer, density, sharp = (torch.cat(column, dim=1) for column in zip(*parts))  # [B, all sets]
        density = density + torch.cat([(weight / size).log().expand(size) for weight, size in zip(prior, sets)])
        sharp = torch.where(density > -torch.inf, sharp, -1)
        if bool((sharp.amax(1) < 0).any()):
            raise IclError(f"noise_free_mixture: the first {k} examples of a prompt fit none of the classes")
        density = density.masked_fill(sharp < sharp.amax(1, keepdim=True), -torch.inf)
        chance = density.softmax(1)
        answers[:, k] = (chance * answer).sum(1)
        chances[:, k] = torch.stack([part.sum(1) for part in chance.split(sets, dim=1)], dim=1)
    return answers, chances


def noise_free_bayes(x: Tensor, y: Tensor, query: Tensor | None = None, **settings) -> Tensor:
    """The posterior mean of noise_free_mixture alone, with baselines.py's signature."""
    return noise_free_mixture(x, y, query, **settings)[0]


def _class_after(x: Tensor, y: Tensor, asked: Tensor, size: int, divisor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every set of `size` coordinates after all of x [B, k, d], y [B, k]: (answer to asked [B, d], log density without powers of
    v, minus infinity where the examples don't fit, how many examples there are more than coordinates), each [B, sets]."""
    k = x.shape[1]
    chosen = torch.tensor(list(combinations(range(x.shape[2]), size)), device=x.device)  # [M, s]
    rows = x[:, :, chosen].transpose(1, 2)  # [B, M, k, s]
    left, values, right = torch.linalg.svd(rows, full_matrices=False)  # values [B, M, min(k, s)]
    inside = (left.mT @ y[:, None, :, None]).squeeze(3)  # of y in the span, by singular vector
    weights = (right.mT @ (inside / values)[..., None]).squeeze(3)  # [B, M, s]
    answer = (asked[:, chosen] * weights).sum(2)
    rank = min(k, size)
    # both cases are one: N(w; 0, I / divisor^2) in the span over the product of the singular values
    scale = math.log(divisor) - 0.5 * math.log(2 * math.pi)
    density = rank * scale - 0.5 * divisor**2 * weights.square().sum(2) - values.log().sum(2)
    if k > size:
        misfit = (y[:, None] - (rows @ weights[..., None]).squeeze(3)).abs().amax(2)
        density = density.masked_fill(misfit > FITS * y.abs().amax(1, keepdim=True), -torch.inf)
    return answer, density, torch.full(density.shape, max(0, k - size), device=x.device)
