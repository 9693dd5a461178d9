"""Linear cross-entropy: the score of each token and, from the same pass, the gradient of the hidden state.

    l = h W^T,  lse = log sum_v exp l_v,  nll = lse - l_target
    dh = w (softmax(l) W - W_target)

The reference keeps logits whole; the fast forms never do. They walk the vocabulary once in blocks and carry a
running maximum, sum and an accumulator of exp(l - max) W, as online-softmax attention does with keys and values
both equal to W (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135). A frozen head
costs 4 H V per token with the gradient and 2 H V without. Of a head in int8 the logits are the quantised product (ops/int8.py), and W
in dh is what it stands for; it has no gradient.

``distillation`` is the same walk with another loss than the score: the divergence to the model q = softmax(l) from a teacher of which K
tokens i_k of each row and their probabilities p_k are known, whose sum P may be less than 1 (Hinton et al. 2015, arXiv 1503.02531)

    kl = sum_k p_k (log p_k - (l_{i_k} - lse))
    dh = w (P softmax(l) W - sum_k p_k W_{i_k})

Its smallest value is at q_{i_k} = p_k / P, whatever the rest of the teacher's mass is. It costs what cross-entropy costs, and K rows of the
head a token.
"""

from __future__ import annotations

import torch

from .precision import widen


def cross_entropy(h, head, targets, weights, nll, lse, dh) -> None:
    """nll, lse [N] in nats; dh [N, H] scaled by weights [N], or None for the score alone.

    targets int64 [N]; a negative target is not scored: nll 0, dh 0.
    """
    scored = targets >= 0
    safe = targets.clamp(min=0)
    logits = widen(head.logits(h))  # [N, V]
    lse.copy_(torch.logsumexp(logits, 1))
    nll.copy_(torch.where(scored, lse - logits.gather(1, safe[:, None])[:, 0], 0.0))
    if dh is None:
        return
    d = _of_logits(torch.softmax(logits, 1), targets, weights)
    dh.copy_(d.to(h.dtype) @ head.weight)


def _of_logits(d, targets, weights):
    """The logits' gradient w (d - onehot) in the memory of the probabilities ``d`` [N, V]; nought where nothing is scored."""
    scored = targets >= 0
    d[torch.arange(len(d), device=d.device), targets.clamp(min=0)] -= 1
    d *= torch.where(scored, 1.0 if weights is None else weights.to(d.dtype), 0.0)[:, None]
    d[~scored] = 0
    return d


def distillation(h, head, targets, ids, logp, weights, nll, lse, kl, dh) -> None:
    """nll, lse [N] as of ``cross_entropy``; kl [N] in nats from a teacher; dh [N, H] of kl scaled by weights [N], or None for the scores.

    ids int64 [N, K], different tokens in each row, negative where there is none; logp [N, K]: their log-probabilities. targets int64
    [N]; a negative target is not scored: nll 0, kl 0, dh 0.
    """
    scored, known = targets >= 0, ids >= 0
    logits = widen(head.logits(h))  # [N, V]
    lse.copy_(torch.logsumexp(logits, 1))
    nll.copy_(torch.where(scored, lse - logits.gather(1, targets.clamp(min=0)[:, None])[:, 0], 0.0))
    p = torch.where(known, logp.exp(), 0.0).to(logits.dtype)  # [N, K]
    chosen = logits.gather(1, ids.clamp(min=0)) - lse[:, None].to(logits.dtype)
    kl.copy_(torch.where(scored, torch.where(known, p * (logp - chosen), 0.0).sum(1), 0.0))
    if dh is None:
        return
    d = torch.softmax(logits, 1) * p.sum(1, keepdim=True)
    d.scatter_add_(1, ids.clamp(min=0), -p)
    d *= torch.where(scored, 1.0 if weights is None else weights.to(d.dtype), 0.0)[:, None]
    d[~scored] = 0
    dh.copy_(d.to(h.dtype) @ head.weight)


def cross_entropy_weight_gradient(h, head, targets, weights, lse, dW, accumulate) -> None:
    """dW [V, H] = sum_n w_n (softmax_n - onehot_n) h_n^T, logits recomputed from h and lse."""
    logits = widen(h @ head.weight.t())
    d = _of_logits(torch.exp(logits - lse[:, None].to(logits.dtype)), targets, weights)
    gradient = (d.to(h.dtype).t() @ h).to(dW.dtype)
    if accumulate:
        dW += gradient
    else:
        dW.copy_(gradient)


def flops(rows: int, hidden: int, vocabulary: int, gradient: bool) -> int:
    """2 N H V for the logits, as much again for d-hidden."""
    return 2 * rows * hidden * vocabulary * (2 if gradient else 1)


def weight_gradient_flops(rows: int, hidden: int, vocabulary: int) -> tuple[int, int]:
    """(recompute, backward): the logits once more, then the product with h."""
    return 2 * rows * hidden * vocabulary, 2 * rows * hidden * vocabulary
