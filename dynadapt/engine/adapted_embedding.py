"""The embedding's adapters in one pass of the decoder: what they add to a token's row, and their gradient (ops/embedding.py)."""

from __future__ import annotations

from dynadapt.adapt.methods import EMBED
from dynadapt.ops import embedding


class AdaptedEmbedding:
    """Where a learner has adapters on the embedding; a pass has one, or None."""

    @classmethod
    def of(cls, decoder, batch, learner) -> AdaptedEmbedding | None:
        """``learner``: what the pass's rows are adapted by; None: nothing."""
        A, Bt = (None, None) if learner is None else learner.adapter(-1, EMBED)
        return None if A is None else cls(decoder, batch, learner, A, Bt)

    def __init__(self, decoder, batch, learner, A, Bt):
        self.decoder, self.learner = decoder, learner
        self.tokens, self.adapter = batch.inputs.reshape(-1), (A, Bt, batch.adapter_slots, learner.scales[-1, EMBED])
        self.sizes = batch.rows, Bt.shape[2], Bt.shape[1]

    def add(self, batch, x) -> None:
        """To the embedded tokens x [N, H], before the stream's scale."""
        d = self.decoder
        d.ops.adapted_embedding_forward(self.tokens, *self.adapter, x)
        d.count_forward(batch, embedding.adapted_forward_flops(*self.sizes))

    def gradient(self, dx, accumulate: bool) -> None:
        """Writes or adds to the adapters' gradients, dx [N, H] being that of what ``add`` gave."""
        d = self.decoder
        d.ops.adapted_embedding_backward(self.tokens, dx, *self.adapter, *self.learner.gradients_of(-1, EMBED), accumulate)
        d.ledger.add("backward", embedding.adapted_backward_flops(*self.sizes))
