"""Online data mixing (arXiv 2312.02406; alon-albalak/online-data-mixing@edbfdad): a bandit that prefers domains with a high loss.

    R_i  <- 0.9 R_i + 0.1 exp(loss_i)                 training loss of the step, only domains in it; R starts at 0
    eps_t = min(1/K, sqrt(ln K / (K t)))              exploration; t is the training step, eps before the first update is 1/K
    "linear"       w_i = (1 - K eps_t) R_i / sum_j R_j + eps_t                                    batches of several domains
    "exponential"  w_i = (1 - K eps_t) exp(eps_{t-1} R_i) / sum_j exp(eps_{t-1} R_j) + eps_t      batches of one domain

Both are the authors' own: the first is what their code does with mixed batches, the second with a batch of one domain. `warmup` steps
keep the initial weights and learn nothing, as theirs do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import Mixer, MixerError, Shaping, check_choice, check_number, reweighted


class ODM(Mixer):
    """smoothing: share of R that stays. `reward` are the R, by domain."""

    name, signal, cadence = "odm", "train", "step"
    _kept = ("reward", "eps")

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float],
        *,
        rule: str = "linear",
        smoothing: float = 0.9,
        warmup: int = 0,
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, initial, shaping)
        self.rule = check_choice("rule", rule, ("linear", "exponential"))
        self.smoothing = check_number("smoothing", smoothing, 0.0, 1.0)
        self.warmup = int(check_number("warmup", warmup, 0))
        self._reward = np.zeros(len(self.domains))
        self._eps = 1.0 / len(self.domains)

    @property
    def reward(self) -> dict[str, float]:
        return self._named(self._reward)

    def _rule(self, step, losses, tokens):
        if step <= self.warmup:
            return self._weights
        seen = ~np.isnan(losses)
        if not seen.any():
            raise MixerError("losses: none is given; odm needs those of the step's batch")
        if self.rule == "exponential" and seen.sum() > 1:
            self._note(f"a batch of {seen.sum()} domains; the exponential rule is made for batches of one")
        with np.errstate(over="ignore"):
            reward = self.smoothing * self._reward + (1.0 - self.smoothing) * np.exp(np.where(seen, losses, 0.0))
        self._reward = np.where(seen, reward, self._reward)
        before, count = self._eps, len(self.domains)
        self._eps = min(1.0 / count, math.sqrt(math.log(count) / (count * step)))
        if self.rule == "linear":
            share = self._reward / self._reward.sum()
        else:
            share = reweighted(np.ones(count), before * self._reward)
        return (1.0 - count * self._eps) * share + self._eps
