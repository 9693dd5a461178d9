"""Skill-it (arXiv 2307.14430), as HazyResearch/aioli@a236112 has it: domains whose losses, or whose dependants' losses, are high get more.

    w_i = exp(eta sum_j A_ij (sum of domain j's last `window` held-out losses)), normalised        eta = 0.2, window = 3

A is the skill graph, A_ij how much training on i lowers the loss of j; the identity without one. (That code sets edges given as 1 to
0.5, off the diagonal; here A is taken as it is.) The rule is not cumulative, and starts from equal weights: what the data's proportions
are plays no role after the first evaluation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import Mixer, MixerError, Shaping, array, check_number, listed, reweighted


class SkillIt(Mixer):
    """graph: {"i": {"j": A_ij}}, absent edges are 0 and an absent diagonal is 1."""

    name, signal, cadence = "skill-it", "heldout", "evaluation"

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float],
        *,
        graph: Mapping[str, Mapping[str, float]] | None = None,
        eta: float = 0.2,
        window: int = 3,
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, initial, shaping)
        self.eta = check_number("eta", eta, 0.0)
        self.window = int(check_number("window", window, 1))
        self.graph = self._matrix(graph or {})
        self._losses: deque[np.ndarray] = deque(maxlen=self.window)

    def _matrix(self, graph) -> np.ndarray:
        matrix = np.eye(len(self.domains))
        for row, edges in graph.items():
            for column, weight in edges.items():
                for domain in (row, column):
                    if domain not in self.domains:
                        raise MixerError(f"graph: unknown domain {domain!r}; there are {', '.join(self.domains)}")
                matrix[self.domains.index(row), self.domains.index(column)] = check_number(f"graph {row} -> {column}", weight, 0.0)
        return matrix

    def _rule(self, step, losses, tokens):
        last = self._losses[-1] if self._losses else np.full(len(self.domains), np.nan)
        self._losses.append(self._carried(losses, last, "loss"))
        return reweighted(np.ones(len(self.domains)), self.eta * self.graph @ np.sum(self._losses, axis=0))

    def _state(self):
        return {"losses": [listed(row) for row in self._losses]}

    def _load(self, state):
        self._losses = deque((array(row) for row in state["losses"]), maxlen=self.window)
