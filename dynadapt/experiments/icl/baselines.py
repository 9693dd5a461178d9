"""Predictors that a model's in-context learning is compared with. Every one is batched over prompts and has one signature:

    predictions [B, N] = baseline(x [B, N, d], y [B, N], query [B, N, d] or None, ...)

Prediction k is the answer to query[:, k] (default x[:, k]) after the examples 0 .. k-1, and 0 at k = 0 unless said otherwise. As in
Garg et al. (arXiv 2208.01066, dtsip/in-context-learning src/models.py), whose baselines loop over prompts where these don't.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .function_class import IclError, check_count, check_number


def check_prompts(x: Tensor, y: Tensor, query: Tensor | None) -> Tensor:
    """The queries; IclError unless the shapes fit."""
    query = x if query is None else query
    if x.ndim != 3 or y.shape != x.shape[:2] or query.shape != x.shape:
        raise IclError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)} and query {tuple(query.shape)}; give [B, N, d], [B, N] and [B, N, d]"
        )
    return query


def before(values: Tensor) -> Tensor:
    """The sum of what comes before each point: [B, N, ...] -> [B, N, ...], zero at point 0."""
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1].cumsum(1)], dim=1)


def zero(x: Tensor, y: Tensor, query: Tensor | None = None) -> Tensor:
    """0."""
    check_prompts(x, y, query)
    return torch.zeros_like(y)


def averaging(x: Tensor, y: Tensor, query: Tensor | None = None) -> Tensor:
    """w q with w the mean of x_i y_i. On dense linear functions its normalised error is (d + 1) / k."""
    query = check_prompts(x, y, query)
    examples = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).clamp(min=1)  # k
    return (before(x * y[:, :, None]) * query).sum(2) / examples


def nearest_neighbours(x: Tensor, y: Tensor, query: Tensor | None = None, *, neighbours: int = 3) -> Tensor:
    """The mean y of the min(k, neighbours) examples nearest to the query."""
    query = check_prompts(x, y, query)
    points = x.shape[1]
    taken = min(check_count("nearest_neighbours: neighbours", neighbours), points)
    distance = torch.cdist(query, x, compute_mode="donot_use_mm_for_euclid_dist")  # [B, query, example]
    unseen = torch.ones(points, points, dtype=torch.bool, device=x.device).triu()  # example i >= k
    nearest = distance.masked_fill(unseen, torch.inf).topk(taken, largest=False)
    seen = nearest.values < torch.inf
    labels = y[:, None].expand(-1, points, -1).gather(2, nearest.indices)  # [B, N, taken]
    return torch.where(seen, labels, 0.0).sum(2) / seen.sum(2).clamp(min=1)


def least_squares(x: Tensor, y: Tensor, query: Tensor | None = None, *, rtol: float | None = None) -> Tensor:
    """w q with w of minimum norm among those of least squares. Singular values under rtol times the largest count as zero (default:
    max(k, d) times the resolution of x's dtype, as LAPACK's drivers); inside everything is float64."""
    query = check_prompts(x, y, query)
    points, dims = x.shape[1:]
    resolution = torch.finfo(x.dtype).eps
    predictions = torch.zeros_like(y)
    examples, labels, asked = x.double(), y.double(), query.double()
    for k in range(1, points):
        inverse = torch.linalg.pinv(examples[:, :k], rtol=max(k, dims) * resolution if rtol is None else rtol)  # [B, d, k]
        weights = inverse @ labels[:, :k, None]
        predictions[:, k] = (asked[:, k, None] @ weights)[:, 0, 0]
    return predictions


def ridge(x: Tensor, y: Tensor, query: Tensor | None = None, *, penalty: float) -> Tensor:
    """w q with w minimising |y - X w|^2 + penalty |w|^2.

    With penalty = noise^2 / scale^2 it is Bayes-optimal for y = w x + noise N(0, 1), w ~ N(0, scale^2 I) (Raventós et al., arXiv
    2306.15063). float64 inside.
    """
    query = check_prompts(x, y, query)
    penalty = check_number("ridge: penalty", penalty, 0.0, above=True)
    points, dims = x.shape[1:]
    predictions = torch.zeros_like(y)
    examples, labels, asked = x.double(), y.double(), query.double()
    gram = penalty * torch.eye(dims, dtype=torch.float64, device=x.device).repeat(x.shape[0], 1, 1)  # [B, d, d]
    moment = torch.zeros_like(asked[:, 0, :, None])  # [B, d, 1]
    for k in range(1, points):
        newest = examples[:, k - 1, :, None]
        gram += newest @ newest.transpose(1, 2)
        moment += newest * labels[:, k - 1, None, None]
        weights = torch.cholesky_solve(moment, torch.linalg.cholesky(gram))
        predictions[:, k] = (asked[:, k, None] @ weights)[:, 0, 0]
    return predictions
