"""Adaptive data optimization (arXiv 2410.11820; yidingjiang/ado@bc3d8d0): domains whose loss is predicted to fall fastest get more weight.

Each domain's training loss gets a scaling law L_k(n) = exp(e) + exp(a) / n^alpha, fitted every `refit` steps to the smoothed losses so
far (`fit_law`); n counts the samples of ALL domains. After every step, with t the number of steps done:

    slope_k = max(alpha, .05) (L_k(n) - exp(e)) / n
    rho_k   = mu_k sqrt(h_k) slope_k, normalised; at least .01 each        mu: initial weights, h: moving average (.9) of the batches' shares
    w       = .9 rhobar + .1 rho;   then rhobar <- (1 - 1/(t+1)) rhobar + rho / (t+1)

sqrt(h_k) is the corrected rule; code copied between October and December 2024 has sqrt(h_k (1 - h_k)). Until the first fit, weights are
the initial ones. A fit that is not finite keeps the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import Mixer, Shaping, check_number

HUBER = 1e-3
GRID = np.stack(np.meshgrid(np.arange(-2.0, 6.0), np.arange(-2.0, 2.0, 0.5), np.arange(8) / 10, indexing="ij"), -1).reshape(
    -1, 3
)  # [512, 3]

STARTS = 16  # the code runs all 512, on an accelerator; the 16 that begin lowest end in the same minimum at a thirtieth of the time


def law_error(parameters: np.ndarray, log_n: np.ndarray, log_loss: np.ndarray) -> tuple[float, np.ndarray]:
    """Huber error of log L, plus penalties that keep 0 < alpha < .8, e >= .5 and a <= 6.5; and its gradient. parameters: a, e, alpha."""
    a, e, alpha = parameters
    power = a - alpha * log_n
    predicted = np.logaddexp(power, e)
    difference = predicted - log_loss
    size = np.abs(difference)
    error = np.where(size > HUBER, HUBER * (size - 0.5 * HUBER), 0.5 * difference**2).sum()
    slope = np.clip(difference, -HUBER, HUBER)
    share = np.exp(power - predicted)  # of the power term in the prediction
    gradient = np.array([(slope * share).sum(), (slope * (1.0 - share)).sum(), -(slope * share * log_n).sum()])
    error += max(alpha - 0.8, 0.0) - min(alpha, 0.001) - min(e - 0.5, 0.0) + max(a - 6.5, 0.0)
    gradient += [float(a > 6.5), -float(e < 0.5), float(alpha > 0.8) - float(alpha < 0.001)]
    return float(error), gradient


def fit_law(n: np.ndarray, loss: np.ndarray, starts: int = STARTS) -> np.ndarray:
    """[3] a, e, alpha: the best of L-BFGS from the `starts` points of the grid with the least error."""
    log_n, log_loss = np.log(n), np.log(loss)
    grid = GRID
    if starts < len(GRID):
        grid = GRID[np.argsort([law_error(start, log_n, log_loss)[0] for start in GRID], kind="stable")[:starts]]
    from scipy.optimize import minimize  # only here: every command's start would wait for it

    found = [minimize(law_error, start, (log_n, log_loss), "L-BFGS-B", jac=True, options={"maxiter": 200, "gtol": 1e-5}) for start in grid]
    return min(found, key=lambda result: result.fun if np.isfinite(result.fun) else np.inf).x


def at_least(weights: np.ndarray, least: float) -> np.ndarray:
    """The code's clip: raised to `least`, then normalised again (so that the smallest ends a little under it)."""
    raised = np.maximum(weights, least)
    return raised / raised.sum()


class ADO(Mixer):
    """sample_tokens: tokens in one training sample, the unit of n. `law` are the fits, {domain: (a, e, alpha)}; empty before the first.

    ignore: first steps left out of the fit.  start: first step that may fit.  refit: steps between fits.  window: of the Savitzky-Golay
    filter of order 3.  starts: see fit_law; 512 is as published.
    """

    name, signal, cadence = "ado", "train", "step"

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float],
        *,
        sample_tokens: int,
        ignore: int = 500,
        start: int = 1000,
        refit: int = 1000,
        window: int = 101,
        starts: int = STARTS,
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, initial, shaping)
        self.sample_tokens = check_number("sample_tokens", sample_tokens, 1)
        self.ignore, self.refit = int(check_number("ignore", ignore, 0)), int(check_number("refit", refit, 1))
        self.window = int(check_number("window", window, 5))
        self.start = int(check_number("start", start, max(self.window, self.ignore + 30)))  # enough steps for the filter and the fit
        self.starts = int(check_number("starts", starts, 1, len(GRID)))
        self._parameters: np.ndarray | None = None  # [K, 3]
        self._losses: list[list[float]] = []  # [T][K]
        self._samples: list[float] = []  # [T], of all domains
        self._seen = 0.0  # their sum, n
        self._history = self.initial.copy()  # h
        self._mean = self.initial.copy()  # rhobar

    @property
    def law(self) -> dict[str, tuple[float, float, float]]:
        return {} if self._parameters is None else {d: tuple(p) for d, p in zip(self.domains, self._parameters.tolist())}

    def _rule(self, step, losses, tokens):
        self._record(losses, tokens)
        if len(self._losses) >= self.start and len(self._losses) % self.refit == 0:
            self._fit()
        return self._weights if self._parameters is None else self._mix(step)

    def _record(self, losses, tokens) -> None:
        known = ~np.isnan(losses)
        if not known.any() and not self._losses:
            losses = self._carried(losses, losses, "loss")  # refuses, naming the domain
        absent = np.array(self._losses[-1]) if self._losses else np.full(len(self.domains), losses[known].mean())
        self._losses.append(np.where(known, losses, absent).tolist())
        self._samples.append(float(tokens.sum() / self.sample_tokens))
        self._seen += self._samples[-1]
        if tokens.sum() > 0:
            self._history = 0.9 * self._history + 0.1 * tokens / tokens.sum()

    def _fit(self) -> None:
        n = np.cumsum(self._samples)[self.ignore :: 10]
        from scipy.signal import savgol_filter

        smooth = savgol_filter(np.array(self._losses), self.window, 3, axis=0)[self.ignore :: 10]
        usable = n > 0
        fits = np.array([fit_law(n[usable], np.maximum(column, 1e-6), self.starts) for column in smooth[usable].T])
        if np.isfinite(fits).all():
            self._parameters = fits
        else:
            self._note("the scaling-law fit is not finite; the one before stays")

    def _mix(self, step: int) -> np.ndarray:
        a, e, alpha = self._parameters.T
        slope = np.maximum(alpha, 0.05) * np.exp(a - alpha * np.log(self._seen)) / self._seen
        rho = self.initial * np.sqrt(self._history) * slope
        rho = at_least(rho / rho.sum(), 0.01)
        weights = 0.9 * self._mean + 0.1 * rho
        self._mean = (1.0 - 1.0 / (step + 1)) * self._mean + rho / (step + 1)
        return weights

    def _state(self):
        return {
            "law": None if self._parameters is None else self._parameters.tolist(),
            "losses": [list(row) for row in self._losses],
            "samples": list(self._samples),
            "seen": self._seen,
            "history": self._history.tolist(),
            "mean": self._mean.tolist(),
        }

    def _load(self, state):
        self._parameters = None if state["law"] is None else np.array(state["law"], float)
        self._losses, self._samples = [list(row) for row in state["losses"]], list(state["samples"])
        self._seen = float(state["seen"])
        self._history, self._mean = np.array(state["history"], float), np.array(state["mean"], float)
