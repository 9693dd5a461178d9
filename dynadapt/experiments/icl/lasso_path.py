"""Lasso for many prompts and all their prefixes at once, exactly: the path of solutions is followed from w = 0 down to the penalty.

min over w of |y - X w|^2 / (2 k) + alpha |w|_1, without intercept (the objective of scikit-learn, which Garg et al. use).

For a penalty above the largest |X^T y| / k the answer is zero. Below, w is linear in the penalty until a coordinate joins the non-zeros or
leaves them (Osborne et al. 2000; Efron et al. 2004, section 3.1), so that some 2 d linear systems of at most d unknowns solve a problem.
All problems take one such step at a time and leave the batch at the wanted penalty. A last solve with the support found removes what
rounding has gathered; the optimality conditions of every answer are checked. Coordinate descent would need 100,000 sweeps and more
where examples are about as many as dimensions; it only finishes the rare problem whose path rounding has spoilt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .baselines import before, check_prompts
from .function_class import IclError, check_number

TOLERANCE = 1e-6  # of the optimality conditions, relative to alpha
STEPS_PER_DIMENSION = 16  # of the path; about 2 are usual
SWEEPS = 4096  # of coordinate descent, where it is needed


def lasso(x: Tensor, y: Tensor, query: Tensor | None = None, *, alpha: float = 0.01) -> Tensor:
    """Predictions [B, N] of baselines.py's signature, optimal to TOLERANCE; IclError where that can't be had. float64 inside."""
    query = check_prompts(x, y, query)
    prompts, points, dims = x.shape
    examples, labels = x.double(), y.double()
    count = torch.arange(points, device=x.device, dtype=torch.float64).clamp(min=1)[None, :, None]  # k; at k = 0 all sums are zero
    gram = before((examples[:, :, :, None] * examples[:, :, None]).flatten(2)) / count  # [B, N, d d]
    moment = before(examples * labels[:, :, None]) / count  # [B, N, d]
    weights = lasso_weights(gram.view(-1, dims, dims), moment.view(-1, dims), alpha=alpha)
    return (weights.view(prompts, points, dims) * query).sum(2).to(y.dtype)


def lasso_weights(gram: Tensor, moment: Tensor, *, alpha: float) -> Tensor:
    """w [P, d] minimising w G w / 2 - c w + alpha |w|_1 for each gram G [P, d, d] = X^T X / k and moment c [P, d] = X^T y / k, float64."""
    alpha = check_number("lasso: alpha", alpha, 0.0, above=True)
    weights = _follow_path(gram, moment, alpha)
    weights, optimal = _solve_on_support(gram, moment, weights, alpha)
    left = (~optimal).nonzero().squeeze(1)
    if len(left):
        swept = _coordinate_descent(gram[left], moment[left], weights[left].nan_to_num(), alpha)
        solved, exact = _solve_on_support(gram[left], moment[left], swept, alpha)
        weights[left] = torch.where(exact[:, None], solved, swept)  # where the optimum isn't unique the system is singular
        optimal[left] = exact | _is_optimal(gram[left], moment[left], swept, alpha)
    if not optimal.all():
        raise IclError(f"lasso: alpha {alpha:g}: {int((~optimal).sum())} of {len(optimal)} problems are not solved; give a larger alpha")
    return weights


def _direction(gram: Tensor, support: Tensor, target: Tensor) -> Tensor:
    """[P, d]: solves G v = target on the support; zero elsewhere."""
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    system = torch.where(support[:, :, None] & support[:, None], gram, identity)
    solved, _ = torch.linalg.solve_ex(system, torch.where(support, target, 0.0)[:, :, None])
    return solved.squeeze(2)


def _follow_path(gram: Tensor, moment: Tensor, alpha: float) -> Tensor:
    """w [P, d] at penalty alpha. What is left of the batch after the last step has w of a larger penalty."""
    solution = torch.zeros_like(moment)
    index = (moment.abs().amax(1) > alpha).nonzero().squeeze(1)  # of the problems that are not at alpha yet
    gram, gradient = gram[index], moment[index]  # gradient = c - G w
    penalty, first = gradient.abs().max(1, keepdim=True)
    signs = torch.zeros_like(gradient).scatter_(1, first, gradient.gather(1, first).sign())  # of the non-zeros
    weights, parted = torch.zeros_like(gradient), torch.zeros_like(gradient)  # parted: the sign of what left in the step before
    for _ in range(STEPS_PER_DIMENSION * moment.shape[1]):
        if not len(index):
            break
        support = signs != 0
        move = _direction(gram, support, signs)  # of w for each unit that the penalty falls
        fall = (gram @ move[:, :, None]).squeeze(2)  # of the gradient
        candidates = torch.stack(
            [
                torch.where(~support & (parted <= 0), (penalty - gradient) / (1 - fall), torch.inf),  # joins with sign +
                torch.where(~support & (parted >= 0), (penalty + gradient) / (1 + fall), torch.inf),  # joins with sign -
                torch.where(support, -weights / move, torch.inf),
            ]
        )  # reaches zero
        candidates = torch.where(candidates > 0, candidates, torch.inf)
        step, event = candidates.permute(1, 0, 2).flatten(1).min(1, keepdim=True)  # of [P, 3 d]
        going = (step < penalty - alpha).squeeze(1)
        step = torch.minimum(step, penalty - alpha)
        weights, gradient, penalty = weights + step * move, gradient - step * fall, penalty - step
        solution[index] = weights

        kind, coordinate = event // moment.shape[1], event % moment.shape[1]
        parted = torch.where((kind == 2) & (torch.arange(moment.shape[1], device=kind.device) == coordinate), signs, 0.0)
        weights = torch.where(parted != 0, 0.0, weights)
        signs = signs.scatter(1, coordinate, torch.where(kind == 0, 1.0, torch.where(kind == 1, -1.0, 0.0)).to(signs.dtype))
        index, gram, gradient, penalty, signs, weights, parted = (
            tensor[going] for tensor in (index, gram, gradient, penalty, signs, weights, parted)
        )
    return solution


def _solve_on_support(gram: Tensor, moment: Tensor, weights: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(w [P, d] that is optimal if support and signs of `weights` are, whether it is [P])."""
    signs = weights.sign()
    exact = _direction(gram, signs != 0, moment - alpha * signs)
    return exact, (exact.sign() == signs).all(1) & _is_optimal(gram, moment, exact, alpha)


def _is_optimal(gram: Tensor, moment: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """[P]: the gradient is alpha times the sign of each non-zero, and at most alpha elsewhere. NaN of a singular system is not optimal."""
    gradient = moment - (gram @ weights[:, :, None]).squeeze(2)
    limit = alpha * TOLERANCE
    stationary = torch.where(weights != 0, (gradient - alpha * weights.sign()).abs() <= limit, gradient.abs() <= alpha + limit)
    return stationary.all(1)


def _coordinate_descent(gram: Tensor, moment: Tensor, weights: Tensor, alpha: float) -> Tensor:
    weights, gradient = weights.clone(), moment - (gram @ weights[:, :, None]).squeeze(2)
    size = gram.diagonal(dim1=1, dim2=2)
    rate = torch.where(size > 0, 1 / size, 0.0)  # a coordinate that is always zero keeps weight zero
    for _ in range(SWEEPS):
        for index in range(weights.shape[1]):
            old = weights[:, index]
            new = torch.nn.functional.softshrink(gradient[:, index] + size[:, index] * old, alpha) * rate[:, index]
            gradient = gradient - gram[:, index] * (new - old)[:, None]
            weights[:, index] = new
    return weights
