"""Cases of what ends a model: the linear cross-entropy and the linear read-out with squared error."""

from __future__ import annotations

import torch

from dynadapt.ops import cross_entropy as entropy_op
from dynadapt.ops import linear_mse as mse_op

from .base import Draw, Op, OpCase

CROSS_ENTROPY = Op("cross_entropy", "nll lse dh", wide="weights nll lse", frozen="head", rows="h targets weights nll lse dh")
CROSS_ENTROPY_WEIGHT_GRADIENT = Op(
    "cross_entropy_weight_gradient", "dW", wide="weights lse dW", frozen="head", rows="h targets weights lse"
)
LINEAR_MSE = Op(
    "linear_mse",
    "pred loss dh dweight dbias",
    changed="dweight dbias",
    wide="bias target weights pred loss dweight dbias",
    rows="h target weights pred loss dh",
)


def _weights(d: Draw, n: int) -> torch.Tensor:
    """Of the rows in the loss; at a model's sizes the loss is the mean, as other packages have it."""
    return d.uniform(n) if d.odd else torch.full((n,), 1 / n, dtype=d.wide_dtype, device=d.device)


def _inputs(d: Draw, n, hidden, vocabulary, weights, spread) -> dict:
    targets = d.integers(vocabulary, n)
    if d.odd:
        targets[::7] = -100
        if n > 3:
            targets[1], targets[2], targets[3] = 0, vocabulary - 1, vocabulary // 2
    return {
        "h": d.acts(n, hidden),
        "head": d.acts(vocabulary, hidden, scale=spread * hidden**-0.5),
        "targets": targets,
        "weights": _weights(d, n) if weights else None,
    }


def cross_entropy(
    d: Draw, n: int, hidden: int, vocabulary: int, gradient: bool = True, weights: bool = True, spread: float = 1.0, label: str = ""
) -> OpCase:
    """``spread``: the standard deviation of the logits. In an odd case every seventh row is not scored."""
    arguments = {
        **_inputs(d, n, hidden, vocabulary, weights, spread),
        "nll": d.out(n, wide=True),
        "lse": d.out(n, wide=True),
        "dh": d.out(n, hidden) if gradient else None,
    }
    moved = 2 * (n * hidden * (2 if gradient else 1) + vocabulary * hidden) + 16 * n
    flops = entropy_op.flops(n, hidden, vocabulary, gradient)
    # Logits of 20 standard deviations reach 80, where one float32 rounding moves a probability by 5e-6.
    return OpCase(CROSS_ENTROPY, d.dtype, arguments, label, moved, flops, max(1.0, spread / 4))


def cross_entropy_weight_gradient(d: Draw, n: int, hidden: int, vocabulary: int, accumulate: bool = False) -> OpCase:
    inputs = _inputs(d, n, hidden, vocabulary, True, 1.0)
    exact = torch.float64 if n * vocabulary < 1 << 24 else torch.float32
    arguments = {
        **inputs,
        "lse": torch.logsumexp(inputs["h"].to(exact) @ inputs["head"].to(exact).t(), 1).to(d.wide_dtype),
        "dW": d.wide(vocabulary, hidden) if accumulate else d.out(vocabulary, hidden, wide=True),
        "accumulate": accumulate,
    }
    moved = 2 * (n * hidden + vocabulary * hidden) + 4 * vocabulary * hidden + 16 * n
    flops = sum(entropy_op.weight_gradient_flops(n, hidden, vocabulary))
    return OpCase(CROSS_ENTROPY_WEIGHT_GRADIENT, d.dtype, arguments, bytes=moved, flops=flops)


def linear_mse(d: Draw, n: int, h: int, bias: bool = True, weights: bool = True, gradients: bool = True, label: str = "") -> OpCase:
    """``gradients``: of the hidden states, the read-out and its bias (where it has one)."""
    arguments = {
        "h": d.acts(n, h),
        "weight": d.acts(h, scale=h**-0.5),
        "bias": d.wide(1) if bias else None,
        "target": d.wide(n),
        "weights": _weights(d, n) if weights else None,
        "pred": d.out(n, wide=True),
        "loss": d.out(n, wide=True),
        "dh": d.out(n, h) if gradients else None,
        "dweight": d.wide(h) if gradients else None,
        "dbias": d.wide(1) if gradients and bias else None,
    }
    # dbias is one sum of terms that cancel: its error is that of the terms.
    slack = 4.0 if arguments["dbias"] is not None else 1.0
    return OpCase(LINEAR_MSE, d.dtype, arguments, label, 4 * n * h + 16 * n, mse_op.flops(n, h, gradients), slack)
