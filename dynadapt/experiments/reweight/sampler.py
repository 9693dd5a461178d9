"""Which training rows come next: a function of seed, step and weights, and of how much of each domain was drawn before.

Each row's domain is drawn by itself with the mixer's probabilities, as Sheared-LLaMA's sampler does, from a generator of the
step's own; within a domain rows come in an order shuffled anew for each pass. So a resumed run draws the same rows, and weights
may be changed on the way without a row being lost or read twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynadapt.experiments.mixers import Exhausted, Supply


class Sampler:
    """sizes: training rows by domain; policy: what happens when a domain runs out (mixers/supply.py)."""

    def __init__(self, sizes: Mapping[str, int], policy: str, seed: int):
        self.domains, self.seed = tuple(sizes), seed
        self.supply = Supply(self.domains, sizes, policy)
        self.sizes = dict(sizes)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def draw(self, step: int, count: int, weights: Mapping[str, float]) -> list[tuple[str, int]]:
        """(domain, row) of each of `count` rows of a step. Exhausted, and nothing drawn, when there are not enough."""
        generator, before = np.random.default_rng([self.seed, step]), self.supply.state_dict()
        try:
            return [self._one(generator.random(), weights) for _ in range(count)]
        except Exhausted:
            self.supply.load_state_dict(before)
            raise

    def _one(self, uniform: float, weights: Mapping[str, float]) -> tuple[str, int]:
        shares = self.supply.sampling(weights)
        bounds = np.cumsum(list(shares.values()))
        domain = self.domains[min(int(np.searchsorted(bounds, uniform * bounds[-1], side="right")), len(bounds) - 1)]
        epoch, place = divmod(self._drawn(domain), self.sizes[domain])
        row = int(self._order(domain, epoch)[place]) if self.supply.policy == "repeat" or epoch == 0 else 0
        self.supply.draw(domain)
        return domain, row

    def _drawn(self, domain: str) -> int:
        return self.supply.state_dict()["drawn"][self.domains.index(domain)]

    def _order(self, domain: str, epoch: int) -> np.ndarray:
        known = self._orders.get(domain)
        if known is None or known[0] != epoch:
            generator = np.random.default_rng([self.seed, self.domains.index(domain), epoch, 1])
            known = self._orders[domain] = (epoch, generator.permutation(self.sizes[domain]))
        return known[1]


def heldout_order(count: int, rows: int, seed: int, index: int) -> Sequence[int]:
    """Which held-out rows are scored: the same ones at every evaluation."""
    return sorted(np.random.default_rng([seed, index, 2, 2]).permutation(count)[:rows].tolist())
