"""Dynamic batch loading of Sheared-LLaMA (princeton-nlp/LLM-Shearing@b87218b): domains far above their target get more weight.

    d_i = loss_i - target_i                                    held-out loss, at the end of every evaluation; not clipped at 0 in the code
    "doremi"     w <- (1 - c) softmax(log w + eta d) + c / K   eta = 1, c = 1e-4
    "bandit"     w <- (1 - c) softmax(w + eta d) + c / K
    "constant"   w stays

`clip=True` takes max(d, 0), as a reading of the paper's algorithm has it. Velocitune's paper calls this rule DBL. Where targets come
from: the authors fit a scaling law, and say that the source model's own validation losses do as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import Mixer, Shaping, by_domain, check_choice, check_number, reweighted


class DynamicBatchLoading(Mixer):
    """target: nats per token by domain. `distance` are the last d, by domain; empty before any."""

    name, signal, cadence = "dynamic-batch-loading", "heldout", "evaluation"
    _kept = ("distance",)

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float],
        *,
        target: Mapping[str, float],
        rule: str = "doremi",
        eta: float = 1.0,
        c: float = 1e-4,
        clip: bool = False,
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, initial, shaping)
        self.target = by_domain("target losses", self.domains, target, least=0.0)
        self.rule = check_choice("rule", rule, ("doremi", "bandit", "constant"))
        self.eta = check_number("eta", eta, 0.0)
        self.c = check_number("c", c, 0.0, 1.0)
        self.clip = bool(clip)
        self._distance = np.full(len(self.domains), np.nan)

    @property
    def distance(self) -> dict[str, float]:
        return {domain: value for domain, value in self._named(self._distance).items() if value == value}

    def _rule(self, step, losses, tokens):
        if self.rule == "constant":
            return self._weights
        self._distance = self._carried(losses - self.target, self._distance, "distance")
        exponent = self.eta * (np.maximum(self._distance, 0.0) if self.clip else self._distance)
        ones = np.ones(len(self.domains))
        moved = reweighted(self._weights, exponent) if self.rule == "doremi" else reweighted(ones, self._weights + exponent)
        return (1.0 - self.c) * moved + self.c / len(self.domains)
