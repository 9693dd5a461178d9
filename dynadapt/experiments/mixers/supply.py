"""What happens when a domain runs out of data: an explicit policy, because a rule that keeps asking for a small domain will get there.

"stop"          the run ends: `Exhausted`, before a sample is drawn twice (default; one epoch, as Velocitune trains)
"repeat"        the domain starts over; `epochs` says how often it has been read
"renormalise"   it is drawn no more, and the other domains share its weight in proportion
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import MixerError, by_domain, check_choice, check_domains


class Exhausted(MixerError):
    """A domain, or with "renormalise" every domain that has weight, has no data left."""


class Supply:
    """Samples of each domain, and how many have been drawn. sizes: samples (or tokens, if draws are counted in tokens) by domain."""

    def __init__(self, domains: Sequence[str], sizes: Mapping[str, int], policy: str = "stop"):
        self.domains = check_domains(domains)
        self.sizes = by_domain("sizes", self.domains, sizes, least=0)
        for domain, size in zip(self.domains, self.sizes):
            if size == 0:
                raise MixerError(f"sizes: domain {domain!r} is empty")
        self.policy = check_choice("policy", policy, ("stop", "repeat", "renormalise"))
        self._drawn = np.zeros(len(self.domains), np.int64)

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain has been read, 1.0 for once."""
        return dict(zip(self.domains, (self._drawn / self.sizes).tolist()))

    def left(self, domain: str) -> int:
        """Samples not drawn yet; in this pass, if the policy is "repeat"."""
        index = self._index(domain)
        drawn, size = int(self._drawn[index]), int(self.sizes[index])
        return size - drawn % size if self.policy == "repeat" else size - drawn

    def sampling(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The probabilities to draw with, given a mixer's. Exhausted when nothing may be drawn."""
        array = by_domain("weights", self.domains, weights, least=0.0)
        if self.policy != "renormalise":
            return dict(zip(self.domains, array.tolist()))
        array = np.where(self._drawn >= self.sizes, 0.0, array)
        if array.sum() == 0:
            raise Exhausted("every domain that has weight is out of data")
        return dict(zip(self.domains, (array / array.sum()).tolist()))

    def draw(self, domain: str, count: int = 1) -> None:
        """Counts samples as drawn. Exhausted, and nothing counted, when there are fewer and the policy doesn't repeat."""
        index = self._index(domain)
        if self.policy != "repeat" and self._drawn[index] + count > self.sizes[index]:
            raise Exhausted(
                f"domain {domain!r} is out of data after {self._drawn[index]:,} of {int(self.sizes[index]):,}; "
                "policy 'repeat' reads it again, 'renormalise' goes on without it"
            )
        self._drawn[index] += count

    def _index(self, domain: str) -> int:
        if domain not in self.domains:
            raise MixerError(f"unknown domain {domain!r}; there are {', '.join(self.domains)}")
        return self.domains.index(domain)

    def state_dict(self) -> dict:
        return {"domains": list(self.domains), "drawn": self._drawn.tolist()}

    def load_state_dict(self, state: Mapping) -> None:
        if tuple(state.get("domains", ())) != self.domains:
            raise MixerError(f"state: its domains are {', '.join(state.get('domains', ()))}; here they are {', '.join(self.domains)}")
        self._drawn = np.array(state["drawn"], np.int64)
