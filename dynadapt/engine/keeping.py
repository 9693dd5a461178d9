"""The gradient that pulls an update towards the prior on a reference text (adapt/keep_prior.py).

The divergence of two models whose logits are W h and W h0, the head W being the same, is the Bregman divergence of the log of the
partition function (Banerjee et al. 2005, JMLR 6, section 4), so that with NLL the score of any target and g its gradient in h

    KL(p0 || q) = NLL(h) - NLL(h0) - g(h0) . (h - h0),    d KL / dh = g(h) - g(h0)

in which the targets cancel. Both g come from the pass of the chunked head that scores. The prior's part is the same at every update: it is
made once, when the engine is made, and kept for each reference token (h0, weight x g(h0), NLL(h0)). So an update costs one forward and
backward of ``tokens`` tokens more, no second model and no logits; and at the prior its pull is zero to the bit. Behind a soft-cap of the
logits, or with a head that learns, the divergence has no such form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynadapt.adapt.keep_prior import KeepPrior

from .batch import Batch

BUILD = 512  # reference tokens that go through the layers together


class Keeping:
    """What one engine keeps of the prior. ``divergence``: {stream: KL in nats a reference token} before its last update, on that one's
    piece; with ``shared`` of stream 0.

    Args:
        engine: made up to its driver; nothing has learned yet.
    """

    def __init__(self, engine, given: KeepPrior):
        self.given, self.decoder, self.lowest = given, engine.decoder, engine.lowest
        pieces = given.pieces.to(engine.device)
        self.inputs, self.targets = pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()
        self.divergence: dict[int, float] = {}
        shape, dtype, device = (len(pieces), given.tokens), engine.torch_dtype, engine.device
        hidden_size, wide = engine.config.hidden_size, engine.decoder.stat_dtype
        self.hidden = torch.empty(*shape, hidden_size, dtype=dtype, device=device)
        self.pull = torch.empty_like(self.hidden)
        self.nll = torch.empty(shape, dtype=wide, device=device)
        self.weights = torch.full((max(1, BUILD // given.tokens) * given.tokens,), given.weight / given.tokens, dtype=wide, device=device)
        for learner in engine.learners[:1]:
            for at in torch.arange(len(pieces), device=device).split(max(1, BUILD // given.tokens)):
                self._score(learner, [0], at, self._keep)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What it holds."""
        return [self.inputs, self.targets, self.hidden, self.pull, self.nll, self.weights]

    def _score(self, learner, slots: list[int], at: torch.Tensor, then):
        """One pass over pieces ``at`` [n] without memory, with the weights of ``slots`` (n of them or one), and what ``then`` makes of it."""
        d, one = self.decoder, self.inputs.device
        rows = torch.arange(len(at), dtype=torch.int32, device=one)
        batch = Batch(self.inputs[at], torch.tensor(slots, dtype=torch.int32, device=one), rows, tuple(slots))
        weights = self.weights[: batch.rows] if batch.rows <= len(self.weights) else self.weights[:1].expand(batch.rows).contiguous()
        memory, d.memory = d.memory, None
        try:
            hidden = d.forward(batch, learner, self.lowest)
            nll, dhidden = d.score(hidden, None, self.targets[at].view(-1), weights)
            return then(batch, at, learner, hidden, nll, dhidden)
        finally:
            d.memory = memory

    def _keep(self, batch, at, learner, hidden, nll, dhidden) -> None:
        shape = (len(at), self.given.tokens)
        self.hidden[at], self.pull[at], self.nll[at] = hidden.view(*shape, -1), dhidden.view(*shape, -1), nll.view(shape)

    def add(self, learner, slots: list[int], streams: Sequence[int]) -> None:
        """Adds to the gradients of ``slots``, which are there, that of the pull on each one's next piece; their ``streams`` for the record."""
        if not slots:
            return
        at = torch.tensor([int(learner.state.step[slot]) % len(self.inputs) for slot in slots], device=self.inputs.device)
        passes = getattr(learner, "passes", None)
        if passes is not None:
            learner.passes = passes + 1  # rows were chosen by the gradient that this one is added to
        try:
            found = self._score(learner, slots, at, self._add)
            self.divergence.update(zip(streams, found))
        finally:
            if passes is not None:
                learner.passes = passes

    def _add(self, batch, at, learner, hidden, nll, dhidden) -> list[float]:
        shape, wide = (len(at), self.given.tokens), self.decoder.stat_dtype
        moved = (hidden.view(*shape, -1).to(wide) - self.hidden[at].to(wide)) * self.pull[at].to(wide)
        kl = (nll.view(shape) - self.nll[at]).mean(1) - moved.sum((1, 2)) / self.given.weight
        dhidden.sub_(self.pull[at].view(dhidden.shape))
        self.decoder.backward(batch, learner, self.lowest, dhidden, True)
        return kl.tolist()
