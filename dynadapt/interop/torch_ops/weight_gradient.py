"""Gradient of whole weights or some rows, the scores that choose them, and the optimizer's step with it (ops/weight_gradient.py)."""

from __future__ import annotations

from dynadapt.ops import weight_gradient as op_weight

from .lora_gradient import RULE, STATE, fused_rule, fused_state
from .registry import contiguous, functional, kernel, mutating, rows, wide


@functional(
    "weight_gradient(Tensor dy, Tensor x, Tensor? rows) -> Tensor",
    lambda dy, x, chosen=None: op_weight.flops(x[0], dy[1] if chosen is None else chosen[0], x[1]),
    gradient=True,
)
def weight_gradient(dy, x, chosen=None):
    dW = wide(dy, dy.shape[1] if chosen is None else chosen.shape[0], x.shape[1])
    yield dW
    x, chosen = contiguous(x, chosen)
    kernel("weight_gradient", dy)(rows(dy), x, chosen, dW, False)


@functional("row_scores(Tensor dy, Tensor x) -> Tensor", gradient=True)
def row_scores(dy, x):
    out = wide(dy, dy.shape[1])
    yield out
    dy, x = contiguous(dy, x)
    kernel("row_scores", dy)(dy, x, out)


@mutating(
    "weight_gradient_update(Tensor dy, Tensor x, Tensor? rows, Tensor(d!) weight, "
    f"{STATE.format('a', 'b', 'c', p='')}, Tensor lr, Tensor(e!) skipped, *, {RULE}) -> ()"
)
def weight_gradient_update(dy, x, rows, weight, *state_lr_and_skipped, **numbers):
    *state, lr, skipped = state_lr_and_skipped
    kernel("weight_gradient_update", dy)(dy, x, rows, weight, fused_state(*state), fused_rule(**numbers), lr, skipped)
