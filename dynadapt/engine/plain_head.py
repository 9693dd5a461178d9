"""The head without adapters in one pass of the decoder: its part of the score, and its gradient (ops/cross_entropy.py)."""

from __future__ import annotations

from dynadapt.ops import cross_entropy

from . import losses


def score(decoder, h, targets, weights, nll, lse, teacher):
    """nll, lse of the scored rows h [n, H] and with ``weights`` dh; the loss of a teacher is left in the decoder's ``loss``."""
    d, n, cap = decoder, len(targets), decoder.config.logits_softcap
    dh = None if weights is None else d.ws("dhidden scored", *h.shape)
    if teacher is None:
        d.ops.cross_entropy(h, d.active.head, targets, weights, nll, lse, dh, cap)
    else:
        d.loss = d.stat("teacher's loss", n)
        d.ops.distillation(h, d.active.head, targets, *teacher, weights, nll, lse, d.loss, dh, cap)
    flops = cross_entropy.flops(n, h.shape[1], d.config.vocab_size, False)
    d.ledger.add("forward", flops)
    if weights is not None:
        d.ledger.add("backward", flops)
    return dh


def gradient(decoder, grads, accumulate: bool) -> None:
    """The head's gradient from what the last score saw; zero where nothing was scored (another read-out)."""
    d = decoder
    if d.scored is None:
        if not accumulate:
            grads.head.zero_()
        return
    h, targets, weights, lse, teacher = d.scored
    if teacher is not None:
        weights = losses.add_teacher(d.ops, h, targets, weights, teacher, grads.head, accumulate)
    d.ops.cross_entropy_weight_gradient(
        h, d.active.head, targets, weights, lse, grads.head, accumulate or teacher is not None, d.config.logits_softcap
    )
    again, back = cross_entropy.weight_gradient_flops(len(targets), h.shape[1], d.config.vocab_size)
    d.ledger.add("recompute", again)
    d.ledger.add("backward", back)
