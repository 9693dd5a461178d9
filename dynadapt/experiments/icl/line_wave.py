"""The exact posterior of functions of one number that are either lines through zero or sinusoids of one known frequency, without noise.

It is closed after every number of examples, and needs no grid:

- none: both classes have mean zero.
- one, (x, y): a line's density of y is N(0, s^2 x^2), and the one line through the example answers. A sinusoid a sin(f x + p) with a
  uniform in [low, high] and p uniform has, at |y| = u < high, the density (arcosh(high / u) - arcosh(max(low, u) / u)) / (pi (high -
  low)), the integral of the arcsine density 1 / (pi sqrt(a^2 - u^2)) over a. Given a and y two phases are left, with cosines of
  opposite signs and the same chance, so that a sin(f q + p) = y cos f (q - x) + a cos(f x + p) sin f (q - x) has the mean y cos f (q
  - x).
- two or more: a line fits all examples or it doesn't, and where it does the sinusoids that do have chance zero, as a point has on a
  curve. So the class is known, and with it the function: two examples have one sinusoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .baselines import before, check_prompts, least_squares
from .combine import SUM_TOLERANCE
from .function_class import IclError, check_number, check_range

ROUNDING = 1e3  # times the resolution of y's dtype: how far from a line rounding may take an example of one


def line_or_wave_posterior(
    x: Tensor,
    y: Tensor,
    query: Tensor | None = None,
    *,
    amplitude: tuple[float, float],
    frequency: float,
    weights: Sequence[float] = (0.5, 0.5),
    divisors: Sequence[float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """(posterior mean of the answer [B, N], chances of line and sinusoid after k examples [B, N, 2]); x [B, N, 1], baselines.py's
    signature.

    A line is w x / divisors[0] with w ~ N(0, 1), a sinusoid a sin(frequency x + p) / divisors[1] with a uniform in `amplitude`;
    weights: their prior chances. Examples of neither class are taken for a sinusoid's. float64 inside; y in float64 tells lines from
    sinusoids to 2e-13 of y, in float32 to 1e-4.
    """
    query = check_prompts(x, y, query)
    if x.shape[2] != 1:
        raise IclError(f"line_or_wave_posterior: x has {x.shape[2]} dimensions; give 1")
    low, high = check_range("line_or_wave_posterior: amplitude", amplitude, 0.0)
    if high == 0.0:
        raise IclError(f"line_or_wave_posterior: amplitude {amplitude!r}: every sinusoid would be zero")
    frequency = check_number("line_or_wave_posterior: frequency", frequency, 0.0, above=True)
    divisors = [check_number("line_or_wave_posterior: divisor", divisor, 0.0, above=True) for divisor in divisors]
    if len(weights) != 2 or min(weights) < 0 or abs(sum(weights) - 1) > SUM_TOLERANCE or len(divisors) != 2:
        raise IclError(f"line_or_wave_posterior: weights {list(weights)}, divisors {divisors}: give two of each, the weights chances")
    at, seen, asked = x[:, :, 0].double(), y.double(), query[:, :, 0].double()
    prior = torch.tensor(weights, dtype=torch.float64, device=x.device)

    moment, square = before(at * seen), before(at.square())
    slope = torch.where(square > 0, moment / square, 0.0)
    angles = lambda points: torch.cat([torch.sin(frequency * points), torch.cos(frequency * points)], dim=2)  # noqa: E731
    wave = least_squares(angles(x.double()), seen, angles(query.double()))
    chance = prior.repeat(*y.shape, 1)
    if y.shape[1] > 1:
        wave[:, 1] = seen[:, 0] * torch.cos(frequency * (asked[:, 1] - at[:, 0]))
        first = torch.stack([_line_density(at[:, 0], seen[:, 0], divisors[0]), _wave_density(seen[:, 0], low, high, divisors[1])], dim=1)
        chance[:, 1] = (first + prior.log()).softmax(1)
    fits = _fits_a_line(at, seen, slope, ROUNDING * torch.finfo(y.dtype).eps)
    for k in range(2, y.shape[1]):
        known = torch.stack([fits[:, k], ~fits[:, k]], dim=1).double()
        chance[:, k] = torch.where(prior > 0, known, 0.0) if min(weights) > 0 else prior
    answers = (chance * torch.stack([slope * asked, wave], dim=2)).sum(2)
    return answers.to(y.dtype), chance.to(y.dtype)


def line_or_wave(x: Tensor, y: Tensor, query: Tensor | None = None, **settings) -> Tensor:
    """The posterior mean of line_or_wave_posterior alone, with baselines.py's signature."""
    return line_or_wave_posterior(x, y, query, **settings)[0]


def _line_density(x: Tensor, y: Tensor, divisor: float) -> Tensor:
    """log N(y; 0, (x / divisor)^2)."""
    spread = x.abs() / divisor
    return -0.5 * (y / spread).square() - spread.log() - 0.5 * math.log(2 * math.pi)


def _wave_density(y: Tensor, low: float, high: float, divisor: float) -> Tensor:
    """Log density of one example of a sinusoid; minus infinity above the largest amplitude."""
    size = (y.abs() * divisor).clamp(min=torch.finfo(torch.float64).tiny)
    inside = size < high
    size = torch.where(inside, size, 0.5 * high)
    if low == high:
        density = 1 / (high**2 - size.square()).sqrt()
    else:
        density = (torch.acosh(high / size) - torch.acosh(size.clamp(min=low) / size)) / (high - low)
    return torch.where(inside, (density * divisor / math.pi).log(), -torch.inf)


def _fits_a_line(x: Tensor, y: Tensor, slope: Tensor, tolerance: float) -> Tensor:
    """[B, N]: whether slope[:, k] fits the examples before k, to `tolerance` of the largest of them."""
    points = x.shape[1]
    misfit = (y[:, None] - slope[:, :, None] * x[:, None]).abs()  # [B, k, example]
    shown = torch.ones(points, points, dtype=torch.bool, device=x.device).tril(-1)  # example i < k
    largest = torch.where(shown, y[:, None].abs(), 0.0).amax(2)
    return torch.where(shown, misfit, 0.0).amax(2) <= tolerance * largest
