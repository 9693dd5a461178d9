"""Candidates that differ in the rate only, each with an exact guard, in one engine that scores their one prior once.

Each candidate's score is the mixture of the prior and of it alone, as in a run of its own: what ``RateMixture`` reports of both is mixed here
for each, while its own mixture, of the prior and all of them, is left aside.
"""

from __future__ import annotations

import torch

from dynadapt.adapt.mixture import Mixture
from dynadapt.engine.rate_mixture import RateMixture


class GuardedRates:
    """K streams that read the same tokens, as an engine of K guarded streams has them, to the bit; it costs K steps and one forward.

    Args:
        engine: a ``RateMixture`` of one text with an exact guard; its rates are set anew by ``set_lr``.
    """

    def __init__(self, engine: RateMixture):
        self.of, self.streams = engine, len(engine.rates)
        self.each = Mixture(self.streams, 2, engine.guard.share, engine.device)

    dtype = property(lambda self: self.of.dtype)
    device = property(lambda self: self.of.device)
    backend = property(lambda self: self.of.backend)
    flops = property(lambda self: self.of.flops)

    def set_lr(self, stream: int, lr: float) -> None:
        self.of.engine.set_lr(stream, lr)

    def reset(self, stream: int) -> None:
        self.of.engine.reset(stream)

    def enter(self, stream: int) -> None:
        """A new document, which all streams enter."""
        if stream == 0:
            self.of.enter(0)
        self.each.enter(stream)

    def step(self, tokens: torch.Tensor, lengths) -> torch.Tensor:
        """Scores [K, T] of tokens [K, T + 1], whose rows are alike."""
        lengths = [int(n) for n in lengths]
        self.of.step(tokens[:1], lengths[:1])
        learned = self.of.last.nll_adapted[0]
        static = self.of.last.nll_static.expand(self.streams, -1)
        return self.each.mix(range(self.streams), [static, learned], lengths)[0]
