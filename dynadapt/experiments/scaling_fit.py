"""Target losses: a form L(D) fitted to a domain's held-out losses on a sub-sample and extrapolated to all tokens.

    fit = fit_curve(tokens, losses)              # every form of scaling_forms.py; the one that foresees best
    fit.residual, fit.backtest                   # root mean square, nats: on all points, and on the last third, foreseen from those before
    fit.extrapolate(1e9).loss, .low, .high       # with a 90% interval, or ScalingError: why this curve can't support it

D is tokens trained on; the evaluation before training (D = 0) doesn't belong in the fit. What a form has to pass:

1. None of its numbers is at a bound: it would want to be another form.
2. What it leaves is noise: a cubic in ln D, which is free to bend anywhere, does not fit better by an F-test at MISFIT (or the residual is under
   EXACT of the fall).
3. It foresees the last third of the points from those before about as well as it fits: an error at the last one below FORESEEN of the fall
   between, or below three times what noise in the points would do to it.

A curve that a line in ln D fits as well shows no sign of levelling off, and where it will do so is not in these points: refused. Of the forms
that pass, the one with the least backtest error is taken, and the interval reaches to the predictions of the others that foresee
about as well: where forms disagree by more than WIDTH of the whole fall, the curve does not say which is right, and is refused.

The interval of one form is a residual bootstrap: residuals are drawn with replacement onto the fitted curve, which is fitted again `DRAWS`
times. They are enlarged by sqrt(n / (n - p)) for its p parameters, and by Student's t over the normal quantile for few
points. Numbers are the same on every run (fixed seed). No check sees what happens after the last point: a loss that stops falling there is foreseen
by none of these forms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as fisher
from scipy.stats import norm as normal
from scipy.stats import t as student

from .scaling_forms import FORMS, Form, best_parameters

POINTS = 8  # least number of evaluations: three parameters, and enough left to tell whether what they leave is noise
SPAN = 4.0  # the last evaluation has at least this many times the tokens of the first: else the exponent is anyone's guess
REACH = 32.0  # largest extrapolation, in multiples of the tokens of the last evaluation
MISFIT = 0.02
EXACT = 1e-4  # a residual of this share of the fall is none
FORESEEN = 0.05
PLAUSIBLE = 2.0  # a form whose backtest error is within this of the best one's foresees about as well
WIDTH = 0.5  # widest interval, as a share of the whole fall from the first evaluation to the prediction
DRAWS = 200
LEVEL = 0.9
Parameters = tuple[float, float, float]


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
    """One form with irreducible (E), amplitude (B) and exponent (k) at tokens / scale (scaling_forms.py). Losses in nats, D in tokens.

    tokens, losses are the points; residual is their root mean square distance, backtest that of the last third from what those before
    foresee; draws [n][3] are the bootstrap's parameters; others are forms that foresee about as well; misfit says why no form fits.
    """

    irreducible: float
    amplitude: float
    exponent: float
    scale: float
    residual: float
    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    draws: tuple[Parameters, ...]
    form: str = "power"
    backtest: float | None = None
    others: tuple[tuple[str, Parameters], ...] = ()
    misfit: str | None = None

    def predict(self, tokens: float) -> float:
        return float(FORMS[self.form]((self.irreducible, self.amplitude, self.exponent), tokens / self.scale))

    def interval(self, tokens: float, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of the bootstrap's predictions, and as far as other forms reach that foresee about as well."""
        predictions = FORMS[self.form](np.array(self.draws).T, tokens / self.scale)
        low, high = np.quantile(predictions, [(1 - level) / 2, (1 + level) / 2])
        others = [float(FORMS[name](parameters, tokens / self.scale)) for name, parameters in self.others]
        return min(float(low), *others, math.inf), max(float(high), *others, -math.inf)

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
        if self.misfit:
            return self.misfit
        low, high = self.interval(tokens)
        whole = self.predict(first) - self.predict(tokens)
        if high - low > WIDTH * whole:
            return (
                f"the interval at {tokens:,.0f} tokens is {low:.4f} to {high:.4f}, wider than {WIDTH:.0%} of the "
                f"{whole:.4f} nats that are to be learned; train on a larger sub-sample, or evaluate more often"
            )
        return None

    def to_dict(self) -> dict:
        listed = {"tokens": list(self.tokens), "losses": list(self.losses), "draws": [list(draw) for draw in self.draws]}
        return {**vars(self), **listed, "others": [[name, list(parameters)] for name, parameters in self.others]}

    @classmethod
    def from_dict(cls, content: Mapping) -> ScalingFit:
        return cls(
            **{
                **content,
                "tokens": tuple(content["tokens"]),
                "losses": tuple(content["losses"]),
                "draws": tuple(tuple(draw) for draw in content["draws"]),
                "others": tuple((name, tuple(parameters)) for name, parameters in content.get("others", ())),
            }
        )


@dataclass(frozen=True)
class _Tried:
    """A form on one curve. backtest: root mean square error of the held-out points; why: it does not pass, or None."""

    form: Form
    parameters: np.ndarray
    residual: float
    backtest: float
    why: str | None


def fit_curve(tokens: Sequence[float], losses: Sequence[float], draws: int = DRAWS, seed: int = 0) -> ScalingFit:
    """tokens [n] trained on at each evaluation, losses [n] nats. ScalingError for points that can't give three parameters; a curve that
    no form fits gives the one with the least residual, whose `misfit` says so."""
    tokens, losses = _points(tokens, losses)
    scale = float(np.exp(np.log(tokens).mean()))  # keeps B and k from being one and the same direction
    x = tokens / scale
    tried = {name: _try(form, x, losses) for name, form in FORMS.items()}
    passed = [each for each in tried.values() if not each.why]
    misfit = None
    if not tried["line"].why:
        misfit = (
            f"a line in ln(tokens) fits as well as anything (residual {tried['line'].residual:.4f}): the loss doesn't level off yet, and where "
            "it will is not in these points; train on a larger sub-sample"
        )
    elif not passed:
        misfit = (
            "no form fits: " + "; ".join(f"{name}: {each.why}" for name, each in tried.items()) + "; train longer, or evaluate more often"
        )
    chosen = min(tried.values(), key=lambda each: each.residual) if misfit else min(passed, key=lambda each: each.backtest)
    near = [each for each in passed if each is not chosen and each.backtest <= PLAUSIBLE * max(chosen.backtest, chosen.residual)]
    fitted, count = chosen.form(chosen.parameters, x), len(tokens)
    freedom, quantile = count - chosen.form.parameters, (1 + LEVEL) / 2
    wider = math.sqrt(count / freedom) * student.ppf(quantile, freedom) / normal.ppf(quantile)
    residuals = losses - fitted
    enlarged = (residuals - residuals.mean()) * wider
    again = best_parameters(chosen.form, x, fitted + np.random.default_rng(seed).choice(enlarged, (draws, count)))
    return ScalingFit(
        *chosen.parameters.tolist(),
        scale,
        chosen.residual,
        tuple(tokens.tolist()),
        tuple(losses.tolist()),
        tuple(tuple(draw) for draw in again.tolist()),
        chosen.form.name,
        chosen.backtest,
        tuple((each.form.name, tuple(each.parameters.tolist())) for each in near),
        misfit,
    )


def _try(form: Form, x: np.ndarray, losses: np.ndarray) -> _Tried:
    """The form on all points, and on the first two thirds, from which it foresees the rest."""
    count = len(x)
    (parameters,) = best_parameters(form, x, losses)
    apart = form(parameters, x) - losses
    residual, fall = _root_mean_square(apart), float(losses[0] - losses[-1])
    early = count - max(2, count // 3)
    (earlier,) = best_parameters(form, x[:early], losses[:early])
    missed = form(earlier, x[early:]) - losses[early:]
    backtest = _root_mean_square(missed)
    why = form.at_bound(parameters)
    if not why and residual > EXACT * abs(fall) and (p := _misfit(form, x, losses, residual)) < MISFIT:
        why = f"what it leaves (residual {residual:.4f}) bends and is not noise (p = {p:.4f})"
    allowed = FORESEEN * abs(float(losses[early - 1] - losses[-1])) + 3 * _carried(form, x, early, earlier, residual)
    if not why and abs(missed[-1]) > allowed:
        why = f"from the first {early} points it foresees the last one {missed[-1]:+.4f} nats off, more than the {allowed:.4f} that noise explains"
    return _Tried(form, parameters, residual, backtest, why)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _misfit(form: Form, x: np.ndarray, losses: np.ndarray, residual: float) -> float:
    """p-value of the F-test of the form against a cubic in ln x; 1 where the cubic is no better."""
    logs = np.log(x)
    cubic = np.polynomial.polynomial.polyval(logs, np.polynomial.polynomial.polyfit(logs, losses, 3)) - losses
    left, bent, freedom = len(x) * residual**2, float((cubic**2).sum()), len(x) - 4
    more = 4 - form.parameters
    return float(fisher.sf(max(0.0, left - bent) / more / max(bent / freedom, 1e-300), more, freedom))


def _carried(form: Form, x: np.ndarray, early: int, parameters: np.ndarray, noise: float) -> float:
    """Standard deviation of the prediction at the last point, fitted to the first `early`, for this noise in each point; its own included."""
    step = 1e-4 * np.maximum(np.abs(parameters), 1e-6)
    free = [i for i in range(3) if not (i == 2 and form.exponents is None or i == 0 and not form.asymptote)]
    slopes = np.stack([(form(parameters + step * (np.arange(3) == i), x) - form(parameters, x)) / step[i] for i in free], axis=1)
    spread = slopes[-1] @ np.linalg.pinv(slopes[:early].T @ slopes[:early]) @ slopes[-1]
    return noise * math.sqrt(1 + max(0.0, float(spread)))


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
