"""Forms that a domain's held-out loss L may have over x, training tokens in multiples of a scale, each with its own three numbers:

    power          E + B x^-k               levels off at E (Chinchilla's law at one size of model, arXiv 2203.15556)
    power to zero  B x^-k                   levels off nowhere but at zero (Kaplan et al., arXiv 2001.08361)
    line           A - B ln x               no sign of levelling off

E and B are not negative. For a given k a form is linear in the other two, so that k is found on a grid, in ever finer steps (variable projection,
Golub and Pereyra 1973), for many curves at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRID, ROUNDS = 60, 7  # exponents tried at a time, and how often finer ones are tried around the best


@dataclass(frozen=True)
class Form:
    """parameters: how many are free; exponents: bounds of k, None where there is none; asymptote: whether E (or A) is free."""

    name: str
    parameters: int
    exponents: tuple[float, float] | None
    asymptote: bool

    def basis(self, x: np.ndarray, k: np.ndarray) -> np.ndarray:
        """What B multiplies."""
        if self.name == "line":
            return -np.log(x) + 0.0 * k
        return x**-k

    def __call__(self, parameters, x):
        """The loss at x; parameters (E or A, B, k), each a number or an array that broadcasts with x."""
        least, amplitude, k = parameters
        return least + amplitude * self.basis(np.asarray(x, float), np.asarray(k, float))

    def at_bound(self, parameters) -> str | None:
        """Which number lies at its bound: a form that would want to be another one."""
        least, amplitude, k = parameters
        if amplitude <= 0:
            return "its amplitude is 0"
        if self.asymptote and self.exponents and least <= 1e-6 * amplitude:
            return "its asymptote is at 0"
        if self.exponents and not 1.01 * self.exponents[0] < k < 0.99 * self.exponents[1]:
            return f"its exponent {k:.3g} is at its bound"
        return None


FORMS = {
    form.name: form
    for form in (Form("power", 3, (0.01, 2.0), True), Form("power to zero", 2, (0.01, 2.0), False), Form("line", 2, None, True))
}


def best_parameters(form: Form, x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """[C, 3] least squares solutions for losses [C, n] at x [n]."""
    losses = np.atleast_2d(losses)
    if form.exponents is None:
        slope, least = np.polynomial.polynomial.polyfit(np.log(x), losses.T, 1)[::-1]
        return np.stack([least, np.maximum(0.0, -slope), np.zeros(len(losses))], axis=1)
    lower, upper = (np.full(len(losses), np.log(bound)) for bound in form.exponents)
    for _ in range(ROUNDS):
        steps = np.linspace(0, 1, GRID)
        ks = np.exp(lower[:, None] + (upper - lower)[:, None] * steps)  # [C, GRID]
        least, amplitude, cost = _linear(form, x, losses, ks)
        at = cost.argmin(axis=1)
        rows = np.arange(len(losses))
        found = np.stack([least[rows, at], amplitude[rows, at], ks[rows, at]], axis=1)
        step, middle = (upper - lower) / (GRID - 1), np.log(ks[rows, at])
        lower, upper = np.maximum(lower, middle - step), np.minimum(upper, middle + step)
    return found


def _linear(form: Form, x: np.ndarray, losses: np.ndarray, ks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, B and the squared distance of each curve [C, n] at each exponent [C, G], all [C, G]."""
    basis = form.basis(x, ks[:, :, None])  # [C, G, n]
    mean, level = basis.mean(axis=2), losses.mean(axis=1)[:, None]
    apart = basis - mean[:, :, None]
    spread = np.maximum((apart**2).sum(axis=2), 1e-300)
    free = np.maximum(0.0, (apart * (losses[:, None] - level[:, :, None])).sum(axis=2) / spread)
    alone = np.maximum(0.0, (basis * losses[:, None]).sum(axis=2) / np.maximum((basis**2).sum(axis=2), 1e-300))
    least = level - free * mean
    through_zero = (least < 0) | (not form.asymptote)
    amplitude = np.where(through_zero, alone, free)
    least = np.where(through_zero, 0.0, least)
    cost = ((least[:, :, None] + amplitude[:, :, None] * basis - losses[:, None]) ** 2).sum(axis=2)
    return least, amplitude, cost
