"""How a domain's held-out loss depends on the mixture that is trained on, and the mixture that has the least of it.

The law is log-linear, of Data Mixing Laws (Ye et al. 2024, arXiv 2403.16952) in the form that Olmix fits (arXiv 2602.12237;
allenai/olmix@04e7188, fit/utils.py): loss_d(x) = exp(c_d) + exp(t_d . x), x on the simplex of K domains, K + 1 numbers a domain. It is fitted
to each domain by itself with Huber's loss (width 0.02 nats) from several starts, the best of which counts. Starts lie around the data instead of in a
fixed box, so 24 do for 300.

A law is held against the plainest one, the mean of what it was fitted to, on mixtures that it did not see: each mixture is left out once, in `FOLDS`
parts. A law that foresees no better than that mean says nothing of mixtures; `check` names it.

The mixture is that of Olmix's exact proposer: mean over domains of the law + penalty x KL(x || prior), which is convex in x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, minimize

HUBER = 0.02  # nats
FOLDS = 5
SHARES = (0.05, 0.3, 0.6, 0.9)  # of the least loss that a start gives to the asymptote
DRAWS = 6  # starts at each of them
MOST = 50.0  # exponent: keeps a wild step finite
LEAST = 1e-9  # weight: the penalty's slope is infinite at zero
WIDEST = 200  # evaluations of a start


class LawError(ValueError):
    """Losses that no law can be fitted to, or one that foresees nothing; the message names the domains."""


@dataclass(frozen=True)
class Law:
    """loss(x) = exp(log_asymptote) + exp(slopes . x). flops: of fitting it, counted from its evaluations."""

    log_asymptote: float
    slopes: np.ndarray  # [K]
    flops: int = 0

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """[N] nats of mixtures [N, K]."""
        return np.exp(self.log_asymptote) + np.exp(np.minimum(mixtures @ self.slopes, MOST))


def fit_law(mixtures: np.ndarray, losses: np.ndarray, seed: int = 0) -> Law:
    """mixtures [N, K], losses [N] of one domain. LawError where they are fewer than the law's numbers and one more."""
    n, k = mixtures.shape
    if n < k + 2:
        raise LawError(f"{n} mixtures of {k} domains: a law has {k + 1} numbers; give at least {k + 2} of them")
    if not (np.isfinite(losses).all() and losses.min() > 0):
        raise LawError(f"losses {losses.tolist()}: a law is of finite losses above 0")

    def residual(parameters: np.ndarray) -> np.ndarray:
        return Law(parameters[0], parameters[1:])(mixtures) - losses

    def slope(parameters: np.ndarray) -> np.ndarray:
        """[N, K + 1]"""
        rising = np.exp(np.minimum(mixtures @ parameters[1:], MOST))
        return np.column_stack([np.full(n, np.exp(parameters[0])), rising[:, None] * mixtures])

    best, evaluations = None, 0
    for start in _starts(mixtures, losses, np.random.default_rng(seed)):
        found = least_squares(residual, start, slope, loss="huber", f_scale=HUBER, max_nfev=WIDEST)
        evaluations += found.nfev + found.njev
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    # an evaluation: x . t and its exponential; a step: the normal equations of K + 1 numbers, as a QR of [N, K + 1]
    flops = evaluations * (2 * n * k + 4 * n + 2 * n * (k + 1) ** 2)
    return Law(float(best.x[0]), best.x[1:], flops)


def _starts(mixtures: np.ndarray, losses: np.ndarray, random: np.random.Generator):
    k = mixtures.shape[1]
    for share in SHARES:
        asymptote = share * losses.min()
        level = np.log(losses.mean() - asymptote)
        for draw in range(DRAWS):
            tilt = np.zeros(k) if draw == 0 else random.uniform(-0.5, 0.1, k)
            yield np.array([np.log(asymptote), *(level + tilt - float(mixtures.mean(0) @ tilt))])


@dataclass(frozen=True)
class Foresight:
    """What a domain's law foresaw of mixtures that it did not see. error, error_of_mean: root mean squares, nats."""

    error: float
    error_of_mean: float
    flops: int

    @property
    def explained(self) -> float:
        """Share of the squared error of the mean that the law takes away; at most 1, below 0 where it is worse."""
        return 1.0 - (self.error / self.error_of_mean) ** 2 if self.error_of_mean > 0 else 0.0


def foresee(mixtures: np.ndarray, losses: np.ndarray, seed: int = 0) -> Foresight:
    """Each mixture is left out once, with those of its part; parts are drawn by `seed`. mixtures [N, K], losses [N]."""
    order = np.random.default_rng([seed, 1]).permutation(len(losses))
    missed, plain, flops = [], [], 0
    for part in np.array_split(order, min(FOLDS, len(losses))):
        kept = np.setdiff1d(order, part)
        law = fit_law(mixtures[kept], losses[kept], seed)
        missed += list(law(mixtures[part]) - losses[part])
        plain += list(losses[kept].mean() - losses[part])
        flops += law.flops
    rms = lambda values: float(np.sqrt(np.mean(np.square(values))))  # noqa: E731
    return Foresight(rms(missed), rms(plain), flops)


def check(found: Mapping[str, Foresight], hold: bool) -> tuple[str, ...]:
    """Domains whose law foresees no better than the mean of what it was fitted to.

    hold: they are given back, to be left out of what is minimised, as long as there are others; else any is a LawError that names them.
    """
    poor = tuple(name for name, value in found.items() if not value.explained > 0)
    if poor and (not hold or len(poor) == len(found)):
        said = "; ".join(f"{name!r}: {found[name].error:.4f} nats, the mean {found[name].error_of_mean:.4f}" for name in poor)
        more = "" if hold else ", or hold such domains at their mean (--unforeseen hold)"
        raise LawError(
            f"the fitted law foresees unseen mixtures no better than their mean ({said}); give more mixtures or longer training{more}"
        )
    return poor


def best_mixture(laws: Sequence[Law], prior: np.ndarray, penalty: float) -> np.ndarray:
    """x [K] that minimises mean over laws + penalty x KL(x || prior) on the simplex. prior [K], above 0."""
    slopes = np.array([law.slopes for law in laws])  # [laws, K]
    prior = np.maximum(prior, LEAST)
    prior = prior / prior.sum()

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        rising = np.exp(np.minimum(slopes @ x, MOST))
        x = np.maximum(x, LEAST)
        value = rising.mean() + penalty * float(x @ np.log(x / prior))
        return float(value), rising @ slopes / len(slopes) + penalty * (np.log(x / prior) + 1.0)

    sums = {"type": "eq", "fun": lambda x: x.sum() - 1.0, "jac": np.ones_like}
    found = minimize(
        objective,
        prior,
        jac=True,
        method="SLSQP",
        bounds=[(LEAST, 1.0)] * len(prior),
        constraints=sums,
        options={"maxiter": 500, "ftol": 1e-12},
    )
    if not found.success:
        raise LawError(f"the least loss over mixtures was not found: {found.message}")
    x = np.where(found.x <= 2 * LEAST, 0.0, found.x)
    return x / x.sum()
