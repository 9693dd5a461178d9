"""The head's adapters in one pass of the decoder: their part of the score, and their gradient (ops/cross_entropy.py)."""

from __future__ import annotations

import torch

from dynadapt.adapt.methods import HEAD
from dynadapt.ops import cross_entropy


class AdaptedHead:
    """Where a learner has adapters on the head; a pass has one, or None."""

    @classmethod
    def of(cls, decoder, batch, learner) -> AdaptedHead | None:
        """``learner``: what the pass's rows are adapted by; None: nothing."""
        A, Bt = (None, None) if learner is None else learner.adapter(decoder.config.layers, HEAD)
        return None if A is None else cls(decoder, batch, learner, A, Bt)

    def __init__(self, decoder, batch, learner, A, Bt):
        self.decoder, self.learner, self.A, self.Bt = decoder, learner, A, Bt
        self.scale = learner.scales[decoder.config.layers, HEAD]
        each = batch.adapter_slots[:, None]
        self.slots = self._slots("slots", batch.rows)
        self.slots.view(len(each), -1).copy_(each)
        self.scored: tuple | None = None

    def _slots(self, name: str, rows: int):
        """Of each row, int32 [rows]."""
        return self.decoder.ws(("head", name), rows, dtype=torch.int32)

    def score(self, h, rows, targets, weights, nll, lse, below: bool):
        """nll, lse of the scored rows h [n, H], ``rows`` of the pass (None: all); with ``weights`` also (dh, dU), dh None unless something
        learns ``below``."""
        d, n, rank = self.decoder, len(targets), self.A.shape[1]
        slots = self.slots if rows is None else torch.index_select(self.slots, 0, rows, out=self._slots("scored slots", n))
        u, dh, dU = d.ws(("head", "u"), n, rank), None, None
        if weights is not None:
            dU = d.ws(("head", "dU"), n, rank)
            dh = d.ws("dhidden scored", *h.shape) if below else None
        softcap = d.config.logits_softcap
        d.ops.adapted_cross_entropy(h, d.active.head, self.A, self.Bt, slots, self.scale, targets, weights, u, nll, lse, dh, dU, softcap)
        forward, backward = cross_entropy.adapted_flops(n, h.shape[1], d.config.vocab_size, rank, weights is not None, below)
        d.ledger.add("forward", forward)
        d.ledger.add("backward", backward)
        self.scored = (h, slots, targets, lse, u, dU)
        return dh, dU

    def gradient(self, weights, accumulate: bool) -> None:
        """Writes or adds to the adapters' gradients from what was scored last, ``weights`` [n]; zero where nothing was (another read-out)."""
        d = self.decoder
        dA, dBt = self.learner.gradients_of(d.config.layers, HEAD)
        if self.scored is None:
            if not accumulate:
                used = self.slots.unique().long()
                dA[used], dBt[used] = 0, 0
            return
        h, slots, targets, lse, u, dU = self.scored
        softcap = d.config.logits_softcap
        d.ops.adapted_cross_entropy_gradient(
            h, d.active.head, self.Bt, slots, self.scale, targets, weights, lse, u, dU, dA, dBt, accumulate, softcap
        )
        again, back = cross_entropy.adapted_gradient_flops(len(targets), h.shape[1], d.config.vocab_size, self.A.shape[1])
        d.ledger.add("recompute", again)
        d.ledger.add("backward", back)
