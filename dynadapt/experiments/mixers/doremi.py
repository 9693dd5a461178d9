"""DoReMi (arXiv 2305.10429; sangmichaelxie/doremi@7cde52d): domains where a proxy model is furthest behind a reference model get more.

    e_i = mean over the tokens of domain i in the global batch of max(proxy NLL - reference NLL, 0)         `excess`, every step
    a <- (1 - eps) softmax(log a + eta e) + eps / K                                    eta = 1; eps 1e-4 (the Pile script has 1e-3)

As published, samples are drawn from a static mix (uniform) and the LOSS is reweighted: a token of domain i counts a_i / drawn_i,
renormalised over the global batch. The weights used are the new ones, of the step itself. With acts="sampling" samples are drawn with
a instead. A domain that is not in the batch keeps its last e; before its first, the code takes ln(vocabulary). The mix that a run
yields is the mean of a over its steps, the initial one included (`static_weights`).

Users of the code report weights close to one-hot; what helped them: a reference trained on the data's own proportions, a larger
batch, eta = 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import Mixer, MixerError, Shaping, by_domain, check_choice, check_number, check_weights, reweighted


def excess(proxy: np.ndarray, reference: np.ndarray, domain: np.ndarray, domains: Sequence[str]) -> dict[str, float]:
    """The losses that DoReMi wants. proxy, reference [N] nats of the same tokens; domain [N] indices into domains."""
    if not len(proxy) == len(reference) == len(domain):
        raise MixerError(f"excess: {len(proxy)} proxy, {len(reference)} reference losses and {len(domain)} domains; give as many of each")
    clipped = np.maximum(np.asarray(proxy, float) - np.asarray(reference, float), 0.0)
    count = np.bincount(domain, minlength=len(domains))
    total = np.bincount(domain, weights=clipped, minlength=len(domains))
    return {domains[index]: float(total[index] / count[index]) for index in np.flatnonzero(count)}


class DoReMi(Mixer):
    """vocabulary: size of the tokenizer's, for domains not seen yet. drawn: the static mix of acts="loss" (default: uniform)."""

    name, signal, cadence = "doremi", "excess", "step"
    _kept = ("excess", "sum", "count")

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float],
        *,
        vocabulary: int | None = None,
        eta: float = 1.0,
        eps: float = 1e-4,
        acts: str = "loss",
        drawn: Mapping[str, float] | None = None,
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, initial, shaping)
        count = len(self.domains)
        self.eta = check_number("eta", eta, 0.0)
        self.eps = check_number("eps", eps, 0.0, 1.0)
        self.acts = check_choice("acts", acts, ("loss", "sampling"))
        self.drawn = np.full(count, 1.0 / count) if drawn is None else check_weights("drawn", self.domains, drawn)
        if self.acts == "loss" and (self.drawn == 0).any():
            raise MixerError(
                f"drawn: domain {self.domains[int(np.argmin(self.drawn))]!r} has 0, so its loss can't be weighted; give a share above 0"
            )
        self._excess = np.full(count, math.nan if vocabulary is None else math.log(check_number("vocabulary", vocabulary, 1)))
        self._sum, self._count = self.initial.copy(), 1

    @property
    def sampling(self):
        return self._named(self.drawn) if self.acts == "loss" else self.weights

    def token_weights(self, tokens):
        ones = super().token_weights(tokens)
        if self.acts == "sampling":
            return ones
        count = np.nan_to_num(by_domain("tokens", self.domains, tokens, least=0, partial=True))
        factor = self._weights / self.drawn
        total = (count * factor).sum()
        if not total > 0:
            return ones
        return {domain: value for domain, value in self._named(factor * count.sum() / total).items() if domain in tokens}

    @property
    def static_weights(self):
        return self._named(self._sum / self._count)

    def _rule(self, step, losses, tokens):
        self._excess = self._carried(losses, self._excess, "excess")
        moved = reweighted(self._weights, self.eta * self._excess)
        new = (1.0 - self.eps) * moved + self.eps / len(self.domains)
        self._sum, self._count = self._sum + self.shaping(self._weights, new), self._count + 1
        return new
