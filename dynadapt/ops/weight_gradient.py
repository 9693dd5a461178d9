"""Weight gradient of a linear layer, whole or for chosen output rows only, and the estimate that chooses them.

    dW[r] = sum_m dy[m, r] x[m]                                    r in rows
    score[o] = sqrt(sum_m dy[m, o]^2 |x_m|^2)

``score`` is the norm that row o of the gradient would have if the tokens' contributions were orthogonal;
it costs O(N O) instead of 2 N O K. Beside the mean of these scores over segments of a reference text,

    contrast[o] = score[o] / max(reference[o], 1e-3 mean(reference))

says which rows a text moves more than texts in general do; the bound keeps rows that the reference text hardly reaches from winning by that alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .update import apply_gradient

LEAST_REFERENCE = 1e-3  # of the mean over rows


def weight_gradient(dy, x, rows, dW, accumulate) -> None:
    """dW [n, K] (float32 or wider) from dy [N, O] (rows may be strided) and x [N, K]; rows int32 [n] or None for all O."""
    chosen = dy if rows is None else dy[:, rows.long()]
    gradient = (chosen.t() @ x).to(dW.dtype)
    if accumulate:
        dW += gradient
    else:
        dW.copy_(gradient)


def row_scores(dy, x, out) -> None:
    """out [O]: the orthogonal estimate of each row's gradient norm."""
    wide = out.dtype
    squares = x.to(wide).square().sum(1, keepdim=True)  # [N, 1]
    out.copy_((dy.to(wide).square() * squares).sum(0).sqrt())


def contrast(scores, reference):
    """[O] of scores [O] and their mean [O] over reference text."""
    return scores / torch.maximum(reference, LEAST_REFERENCE * reference.mean())


def weight_gradient_update(dy, x, rows, weight, state, rule, lr, skipped) -> None:
    """One step of the rows ``rows`` (int32 [n]; None: all) of one weight; inputs as in ``weight_gradient``.

    weight [O, K]: the working copy, of which only these rows are written; state: UpdateState of [n, K] whose ``working``
    is not used; lr float32 [1]; skipped int32 [1], nothing happens when it is not 0 on entry.
    """
    rule.check_fused("weight_gradient_update")
    state.check_fused("weight_gradient_update", "state", rule)
    if skipped[0]:
        return
    gradient = torch.zeros_like(state.master)
    weight_gradient(dy, x, rows, gradient, False)
    index = slice(None) if rows is None else rows.long()
    working = weight[index]
    skipped[0] = int(not apply_gradient(gradient, replace(state, working=working), rule, float(lr[0])))
    weight[index] = working


def flops(rows: int, chosen: int, k: int) -> int:
    """2 N n K for n chosen output rows."""
    return 2 * rows * chosen * k
