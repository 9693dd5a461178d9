"""DoReMi (arXiv 2305.10429; sangmichaelxie/doremi@7cde52d): domains where a proxy model is furthest behind a reference model get more.

    e_i = mean over the tokens of domain i in the global batch of max(proxy NLL - reference NLL, 0)         `excess`, every step
    a <- (1 - eps) softmax(log a + eta e) + eps / K                                    eta = 1; eps 1e-4 (the Pile script has 1e-3)

As published, samples are drawn from a static mix (uniform) and the LOSS is reweighted: a token of domain i counts a_i / drawn_i,
renormalised over the global batch. The weights used are the new ones, of the step itself. With acts="sampling" samples are drawn with
a instead. A domain that is not in the batch keeps its last e. The mix that a run yields is the mean of a over its steps, the initial one
included (`static_weights`).

Before a domain was in any batch the code takes ln(vocabulary), which batches of the paper's size never show. In small batches it decides
everything: with 8 rows for 9 domains and equal excesses, the domain that comes last takes most of the weight. So here such a domain has the mean of
those seen (unseen="vocabulary" is the code's), and batches with fewer rows than domains are refused unless small_batches says
that they are meant: even so most of what moves the weights then is which domains a batch happens to hold.

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
    """drawn: the static mix of acts="loss" (default: uniform). unseen: excess of a domain that was in no batch yet, the "mean" of those that
    were or, as published, ln of the "vocabulary", whose size it needs. rows: of a batch; fewer than domains need small_batches."""

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
        unseen: str = "mean",
        rows: int | None = None,
        small_batches: bool = False,
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
        check_choice("unseen", unseen, ("mean", "vocabulary"))
        if unseen == "vocabulary" and vocabulary is None:
            raise MixerError("unseen 'vocabulary': needs vocabulary, the size of the tokenizer's; or give unseen='mean'")
        if not isinstance(small_batches, bool):
            raise MixerError(f"small_batches {small_batches!r}: give true or false")
        if rows is not None and rows < count and not small_batches:
            raise MixerError(
                f"rows {rows}: fewer than the {count} domains, so that every batch leaves some out and their excess is an old one; give at "
                f"least {count}, better several times as many, or small_batches=true (--set small_batches=true)"
            )
        unknown = math.log(check_number("vocabulary", vocabulary, 1)) if unseen == "vocabulary" else math.nan
        self._excess = np.full(count, unknown)
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
        moved = reweighted(self._weights, self.eta * self._known(losses))
        new = (1.0 - self.eps) * moved + self.eps / len(self.domains)
        self._sum, self._count = self._sum + self.shaping(self._weights, new), self._count + 1
        return new

    def _known(self, losses: np.ndarray) -> np.ndarray:
        """[K] excesses: of the batch, the last known ones, and for domains in no batch so far the mean of the others (0 where there are none)."""
        never = np.isnan(losses) & np.isnan(self._excess)
        self._excess = np.where(np.isnan(losses), self._excess, losses)
        mean = float(self._excess[~never].mean()) if not never.all() else 0.0
        last = np.where(never, mean, self._excess)
        for domain in np.flatnonzero(never):
            self._note(f"{self.domains[domain]}: in no batch yet, the mean excess of the others {mean:.4f} is used")
        return self._carried(np.where(never, mean, losses), last, "excess")
