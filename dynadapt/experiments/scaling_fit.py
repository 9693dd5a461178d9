"""Target losses: L(D) = E + B / D^beta, fitted to a domain's held-out losses on a sub-sample and extrapolated to all tokens.

The model's size is constant here, so of Chinchilla's law only these three are identifiable: E nats that stay, and B / D^beta that
training takes away. D is tokens trained on; the evaluation before training (D = 0) doesn't belong in the fit.

    fit = fit_curve(tokens, losses)              # least squares with bounds, from several starts
    fit.residual                                 # root mean square, nats
    fit.extrapolate(1e9).loss, .low, .high       # with a 90% interval, or ScalingError: why this curve can't support it

The interval is a residual bootstrap: residuals are drawn with replacement onto the fitted curve, which is fitted again `DRAWS`
times. They are enlarged by sqrt(n / (n - 3)) for the three parameters, and by Student's t over the normal quantile for few
points; still, intervals of 90% hold the truth of synthetic curves of 12 points only 83 to 87% of the time. The law is held to be
right: they say what noise does to the prediction, not what a wrong law would. Numbers are the same on every run (fixed seed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import norm as normal
from scipy.stats import t as student

POINTS = 6  # least number of evaluations: three parameters, and as many left to judge them by
SPAN = 4.0  # the last evaluation has at least this many times the tokens of the first: else beta is anyone's guess
REACH = 32.0  # largest extrapolation, in multiples of the tokens of the last evaluation
EXPONENTS = (0.01, 2.0)  # bounds of beta
WIDTH = 0.5  # widest interval, as a share of the whole fall from the first evaluation to the prediction
DRAWS = 200
LEVEL = 0.9


class ScalingError(ValueError):
    """A curve that can't be fitted, or a prediction that it can't support; the message says why and what would help."""


@dataclass(frozen=True)
class Prediction:
    """Loss at `tokens`, with its interval, nats per token."""

    tokens: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class ScalingFit:
    """L(D) = irreducible + amplitude (D / scale)^-exponent; B = amplitude scale^exponent. Losses in nats, D in tokens.

    tokens, losses are the points; residual is their root mean square distance; draws [n][3] are the bootstrap's parameters.
    """

    irreducible: float
    amplitude: float
    exponent: float
    scale: float
    residual: float
    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    draws: tuple[tuple[float, float, float], ...]

    def predict(self, tokens: float) -> float:
        return float(_law((self.irreducible, self.amplitude, self.exponent), tokens / self.scale))

    def interval(self, tokens: float, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of the bootstrap's predictions."""
        predictions = _law(np.array(self.draws).T, tokens / self.scale)
        low, high = np.quantile(predictions, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def extrapolate(self, tokens: float) -> Prediction:
        """The prediction at `tokens`, or ScalingError if this curve can't support it: see `unsupported`."""
        if reason := self.unsupported(tokens):
            raise ScalingError(reason)
        return Prediction(float(tokens), self.predict(tokens), *self.interval(tokens))

    def unsupported(self, tokens: float) -> str | None:
        """Why the prediction at `tokens` can't be supported; None if it can."""
        if not (isinstance(tokens, (int, float)) and math.isfinite(tokens) and tokens > 0):
            return f"tokens {tokens!r}: give a number above 0"
        first, last = self.tokens[0], self.tokens[-1]
        if tokens > REACH * last:
            return (
                f"{tokens:,.0f} tokens are {tokens / last:.0f} times the {last:,.0f} that were trained on; at most {REACH:g} "
                "times is supported: train on a larger sub-sample"
            )
        fall = self.predict(first) - self.predict(last)
        if fall < 2 * self.residual:
            return (
                f"the loss falls by {fall:.4f} nats over the sub-sample, less than twice the residual of "
                f"{self.residual:.4f}: there is no trend to extend; train longer, or evaluate on more held-out text"
            )
        if self.exponent < 1.01 * EXPONENTS[0]:
            return f"the exponent {self.exponent:.3f} is at its bound: the loss doesn't level off yet; train on a larger sub-sample"
        low, high = self.interval(tokens)
        whole = self.predict(first) - self.predict(tokens)
        if high - low > WIDTH * whole:
            return (
                f"the interval at {tokens:,.0f} tokens is {low:.4f} to {high:.4f}, wider than {WIDTH:.0%} of the "
                f"{whole:.4f} nats that are to be learned; train on a larger sub-sample, or evaluate more often"
            )
        return None

    def to_dict(self) -> dict:
        return {**vars(self), "tokens": list(self.tokens), "losses": list(self.losses), "draws": [list(draw) for draw in self.draws]}

    @classmethod
    def from_dict(cls, content: Mapping) -> ScalingFit:
        return cls(
            **{
                **content,
                "tokens": tuple(content["tokens"]),
                "losses": tuple(content["losses"]),
                "draws": tuple(tuple(draw) for draw in content["draws"]),
            }
        )


def fit_curve(tokens: Sequence[float], losses: Sequence[float], draws: int = DRAWS, seed: int = 0) -> ScalingFit:
    """tokens [n] trained on at each evaluation, losses [n] nats. ScalingError for points that can't give three parameters."""
    tokens, losses = _points(tokens, losses)
    scale = float(np.exp(np.log(tokens).mean()))  # keeps B and beta from being one and the same direction
    relative = tokens / scale
    best = _best(relative, losses, _starts(losses))
    residuals = losses - _law(best, relative)
    freedom, quantile = len(tokens) - 3, (1 + LEVEL) / 2
    wider = math.sqrt(len(tokens) / freedom) * student.ppf(quantile, freedom) / normal.ppf(quantile)
    enlarged = (residuals - residuals.mean()) * wider
    generator = np.random.default_rng(seed)
    again = [_best(relative, _law(best, relative) + generator.choice(enlarged, len(tokens)), [best]) for _ in range(draws)]
    return ScalingFit(
        *best.tolist(),
        scale,
        float(np.sqrt((residuals**2).mean())),
        tuple(tokens.tolist()),
        tuple(losses.tolist()),
        tuple(tuple(draw.tolist()) for draw in again),
    )


def fit_targets(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], tokens: float) -> dict[str, tuple[ScalingFit, Prediction]]:
    """Fit and prediction of each domain's curve at `tokens`. One ScalingError names every domain that refuses, and why."""
    found, refused = {}, []
    for domain, (trained, losses) in curves.items():
        try:
            fit = fit_curve(trained, losses)
            found[domain] = fit, fit.extrapolate(tokens)
        except ScalingError as error:
            refused.append(f"domain {domain!r}: {error}")
    if refused:
        raise ScalingError("; ".join(refused))
    return found


def _points(tokens, losses) -> tuple[np.ndarray, np.ndarray]:
    tokens, losses = np.asarray(tokens, float), np.asarray(losses, float)
    if tokens.ndim != 1 or tokens.shape != losses.shape:
        raise ScalingError(f"{tokens.size} token counts and {losses.size} losses; give as many of each")
    if len(tokens) < POINTS:
        raise ScalingError(f"{len(tokens)} evaluations; at least {POINTS} are needed for three parameters and a residual")
    if not (np.isfinite(tokens).all() and np.isfinite(losses).all() and (losses > 0).all()):
        raise ScalingError("token counts and losses must be finite, and losses above 0")
    if not (np.diff(tokens) > 0).all() or tokens[0] <= 0:
        raise ScalingError(
            f"token counts must grow and start above 0, but are {tokens[0]:g}, {tokens[1]:g}, ...; "
            "the evaluation before training has no place on this curve"
        )
    if tokens[-1] < SPAN * tokens[0]:
        raise ScalingError(
            f"evaluations from {tokens[0]:,.0f} to {tokens[-1]:,.0f} tokens; the last must have at least {SPAN:g} times the first"
        )
    return tokens, losses


def _law(parameters, relative):
    irreducible, amplitude, exponent = parameters
    return irreducible + amplitude * relative ** (-exponent)


def _starts(losses: np.ndarray) -> list[tuple[float, float, float]]:
    """Asymptotes from 0 to just under the least loss, crossed with exponents."""
    least, mean = losses.min(), losses.mean()
    return [(share * least, mean - share * least, exponent) for share in (0.0, 0.5, 0.9, 0.99) for exponent in (0.1, 0.3, 0.6, 1.2)]


def _best(relative: np.ndarray, losses: np.ndarray, starts) -> np.ndarray:
    """[3] the least squares solution with 0 <= E, 0 <= B and beta within EXPONENTS."""
    lower, upper = np.array([0.0, 0.0, EXPONENTS[0]]), np.array([np.inf, np.inf, EXPONENTS[1]])
    log_relative = np.log(relative)

    def distance(parameters):
        return _law(parameters, relative) - losses

    def jacobian(parameters):
        power = relative ** (-parameters[2])
        return np.stack([np.ones_like(power), power, -parameters[1] * power * log_relative], axis=1)

    solutions = [
        least_squares(distance, np.clip(start, lower + 1e-9, upper - 1e-9), jacobian, (lower, upper), x_scale=(1.0, 1.0, 0.1), max_nfev=200)
        for start in starts
    ]
    return min(solutions, key=lambda solution: solution.cost).x
