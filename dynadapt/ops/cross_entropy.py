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

With a ``softcap`` c the logits are c tanh(l / c) (Gemma Team 2024, arXiv 2408.00118, section 2), and their gradient is multiplied
with 1 - tanh(l / c)^2.

``adapted_cross_entropy`` has a low-rank adapter of its own on the head for each stream (Hu et al. 2021, arXiv 2106.09685): l = h W^T + s u Bt,
u = h A^T. With g = w (softmax(l) - onehot), which never exists as a whole,

    dU = s g Bt^T,  dh = g W + dU A                      in the walk that scores
    dA = dU^T h,  dBt = s u^T g                          in ``adapted_cross_entropy_gradient``

The sum over tokens in dBt needs each token's lse before the first of its logits, so the second makes the logits anew, 2 N H V once more: what
learning a head costs, whatever the rank.
"""

from __future__ import annotations

import torch

from .precision import widen


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """c tanh(logits / c), or ``logits`` without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def cross_entropy(h, head, targets, weights, nll, lse, dh, softcap=None) -> None:
    """nll, lse [N] in nats; dh [N, H] scaled by weights [N], or None for the score alone.

    targets int64 [N]; a negative target is not scored: nll 0, dh 0. softcap: None, or a number above 0.
    """
    logits = capped(widen(head.logits(h)), softcap)  # [N, V]
    _score(logits, targets, nll, lse)
    if dh is None:
        return
    d = _of_logits(torch.softmax(logits, 1), logits, targets, weights, softcap)
    dh.copy_(d.to(h.dtype) @ head.weight)


def _score(logits, targets, nll, lse) -> None:
    lse.copy_(torch.logsumexp(logits, 1))
    nll.copy_(torch.where(targets >= 0, lse - logits.gather(1, targets.clamp(min=0)[:, None])[:, 0], 0.0))


def _of_logits(d, logits, targets, weights, softcap):
    """The gradient w (d - onehot) of logits before the cap, in the memory of the probabilities ``d`` [N, V]; nought where nothing is scored."""
    d[torch.arange(len(d), device=d.device), targets.clamp(min=0)] -= 1
    return _weighted(d, logits, targets, weights, softcap)


def _weighted(d, logits, targets, weights, softcap):
    """``d`` [N, V] of capped logits, weighted, of logits before the cap; nought where nothing is scored."""
    scored = targets >= 0
    d *= torch.where(scored, 1.0 if weights is None else weights.to(d.dtype), 0.0)[:, None]
    if softcap is not None:
        d *= 1 - (logits / softcap) ** 2
    d[~scored] = 0
    return d


def distillation(h, head, targets, ids, logp, weights, nll, lse, kl, dh, softcap=None) -> None:
    """nll, lse [N] as of ``cross_entropy``; kl [N] in nats from a teacher; dh [N, H] of kl scaled by weights [N], or None for the scores.

    ids int64 [N, K], different tokens in each row, negative where there is none; logp [N, K]: their log-probabilities. targets int64
    [N]; a negative target is not scored: nll 0, kl 0, dh 0.
    """
    scored, known = targets >= 0, ids >= 0
    logits = capped(widen(head.logits(h)), softcap)  # [N, V]
    _score(logits, targets, nll, lse)
    p = torch.where(known, logp.exp(), 0.0).to(logits.dtype)  # [N, K]
    chosen = logits.gather(1, ids.clamp(min=0)) - lse[:, None].to(logits.dtype)
    kl.copy_(torch.where(scored, torch.where(known, p * (logp - chosen), 0.0).sum(1), 0.0))
    if dh is None:
        return
    d = torch.softmax(logits, 1) * p.sum(1, keepdim=True)
    d.scatter_add_(1, ids.clamp(min=0), -p)
    dh.copy_(_weighted(d, logits, targets, weights, softcap).to(h.dtype) @ head.weight)


def cross_entropy_weight_gradient(h, head, targets, weights, lse, dW, accumulate, softcap=None) -> None:
    """dW [V, H] = sum_n w_n (softmax_n - onehot_n) h_n^T, logits recomputed from h and lse."""
    logits = capped(widen(h @ head.weight.t()), softcap)
    d = _of_logits(torch.exp(logits - lse[:, None].to(logits.dtype)), logits, targets, weights, softcap)
    gradient = (d.to(h.dtype).t() @ h).to(dW.dtype)
    if accumulate:
        dW += gradient
    else:
        dW.copy_(gradient)


def by_adapter(slots):
    """(slot, its rows) of each slot in ``slots`` int32 [N]."""
    return [(slot, (slots == slot).nonzero()[:, 0]) for slot in dict.fromkeys(slots.tolist())]


def _adapted_logits(h, base, Bt, slots, scale, u, softcap):
    """The logits [N, V] with their rows' adapters, from u and those of the base."""
    logits = widen(base)
    for slot, rows in by_adapter(slots):
        logits[rows] += scale * widen(u[rows] @ Bt[slot])
    return capped(logits, softcap)


def adapted_cross_entropy(h, head, A, Bt, slots, scale, targets, weights, u, nll, lse, dh, dU, softcap=None) -> None:
    """``cross_entropy`` of logits h W^T + scale u Bt, with u = h A^T [N, R] and dU = scale g Bt^T [N, R], dU None for the score alone.

    A [slots, R, H], Bt [slots, R, V]; slots int32 [N]: the adapter of each row; the rows of one stand side by side. dh None, with dU:
    nothing below the head learns.
    """
    for slot, rows in by_adapter(slots):
        u[rows] = h[rows] @ A[slot].t()
    logits = _adapted_logits(h, head.logits(h).clone(), Bt, slots, scale, u, softcap)
    _score(logits, targets, nll, lse)
    if dU is None:
        return
    d = _of_logits(torch.softmax(logits, 1), logits, targets, weights, softcap).to(h.dtype)
    for slot, rows in by_adapter(slots):
        dU[rows] = scale * (d[rows] @ Bt[slot].t())
    if dh is None:
        return
    dh.copy_(d @ head.weight)
    for slot, rows in by_adapter(slots):
        dh[rows] += dU[rows] @ A[slot]


def adapted_cross_entropy_gradient(h, head, Bt, slots, scale, targets, weights, lse, u, dU, dA, dBt, accumulate, softcap=None) -> None:
    """dA = dU^T h [slots, R, H] and dBt = scale u^T g [slots, R, V] of the adapters in ``slots`` alone; logits recomputed from h, u and lse."""
    logits = _adapted_logits(h, (h @ head.weight.t()), Bt, slots, scale, u, softcap)
    d = _of_logits(torch.exp(logits - lse[:, None].to(logits.dtype)), logits, targets, weights, softcap).to(h.dtype)
    for slot, rows in by_adapter(slots):
        a, b = (dU[rows].t() @ h[rows]).to(dA.dtype), scale * (u[rows].t() @ d[rows]).to(dBt.dtype)
        if accumulate:
            dA[slot] += a
            dBt[slot] += b
        else:
            dA[slot], dBt[slot] = a, b


def flops(rows: int, hidden: int, vocabulary: int, gradient: bool) -> int:
    """2 N H V for the logits, as much again for d-hidden."""
    return 2 * rows * hidden * vocabulary * (2 if gradient else 1)


def weight_gradient_flops(rows: int, hidden: int, vocabulary: int) -> tuple[int, int]:
    """(recompute, backward): the logits once more, then the product with h."""
    return 2 * rows * hidden * vocabulary, 2 * rows * hidden * vocabulary


def adapted_flops(rows: int, hidden: int, vocabulary: int, rank: int, gradient: bool, below: bool = True) -> tuple[int, int]:
    """(forward, backward): 2 N H V + 2 N R (H + V) for the logits; 2 N R V for dU, and 2 N H V + 2 N R H where something learns below."""
    forward = 2 * rows * (hidden * vocabulary + rank * (hidden + vocabulary))
    return forward, 2 * rows * (rank * vocabulary + hidden * (vocabulary + rank) * below) * gradient


def adapted_gradient_flops(rows: int, hidden: int, vocabulary: int, rank: int) -> tuple[int, int]:
    """(recompute, backward): 2 N (H + R) V for the logits once more, then 2 N R (H + V)."""
    return 2 * rows * (hidden + rank) * vocabulary, 2 * rows * rank * (hidden + vocabulary)
