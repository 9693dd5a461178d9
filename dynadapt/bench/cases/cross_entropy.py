"""Cases of the linear cross-entropy."""

from __future__ import annotations

import torch

from dynadapt.ops import cross_entropy as ops

from .base import Draw, Op, OpCase, weight_bytes

CROSS_ENTROPY = Op("cross_entropy", "nll lse dh", wide="weights nll lse", frozen="head", rows="h targets weights nll lse dh")
CROSS_ENTROPY_WEIGHT_GRADIENT = Op(
    "cross_entropy_weight_gradient", "dW", wide="weights lse dW", frozen="head", rows="h targets weights lse"
)


DISTILLATION = Op(
    "distillation", "nll lse kl dh", wide="logp weights nll lse kl", frozen="head", rows="h targets ids logp weights nll lse kl dh"
)


def _inputs(d: Draw, n, hidden, vocabulary, weights, spread, base="same") -> dict:
    targets = d.integers(vocabulary, n)
    if d.odd:
        targets[::7] = -100
        if n > 3:
            targets[1], targets[2], targets[3] = 0, vocabulary - 1, vocabulary // 2
    return {
        "h": d.acts(n, hidden),
        "head": d.weight(vocabulary, hidden, base, spread * hidden**-0.5),
        "targets": targets,
        "weights": d.row_weights(n) if weights else None,
    }


def cross_entropy(
    d: Draw,
    n: int,
    hidden: int,
    vocabulary: int,
    gradient: bool = True,
    weights: bool = True,
    spread: float = 1.0,
    label: str = "",
    base: str = "same",
) -> OpCase:
    """``spread``: the standard deviation of the logits. In an odd case every seventh row is not scored."""
    arguments = {
        **_inputs(d, n, hidden, vocabulary, weights, spread, base),
        "nll": d.out(n, wide=True),
        "lse": d.out(n, wide=True),
        "dh": d.out(n, hidden) if gradient else None,
    }
    moved = 2 * n * hidden * (2 if gradient else 1) + int(weight_bytes(vocabulary * hidden, base)) + 16 * n
    flops = ops.flops(n, hidden, vocabulary, gradient)
    # Logits of 20 standard deviations reach 80, where one float32 rounding moves a probability by 5e-6.
    return OpCase(CROSS_ENTROPY, d.dtype, arguments, label, moved, flops, max(1.0, spread / 4), base)


def distillation(
    d: Draw,
    n: int,
    hidden: int,
    vocabulary: int,
    teacher: int = 32,
    gradient: bool = True,
    weights: bool = True,
    spread: float = 1.0,
    label: str = "",
    base: str = "same",
) -> OpCase:
    """``teacher``: its tokens a row, K. In an odd case some rows have fewer, and every seventh row is not scored."""
    inputs = _inputs(d, n, hidden, vocabulary, weights, spread, base)
    k = min(teacher, vocabulary)
    ids = torch.stack([d.permutation(vocabulary)[:k] for _ in range(n)]) if n else torch.empty(0, k, dtype=torch.int64, device=d.device)
    if d.odd:
        ids[::3, k // 2 + 1 :] = -1
    logp = torch.log_softmax(2 * d.wide(n, k), 1) - 0.1  # of a mass of 0.9
    arguments = {
        **{name: inputs[name] for name in ("h", "head", "targets")},
        "ids": ids,
        "logp": logp,
        "weights": inputs["weights"],
        **{name: d.out(n, wide=True) for name in ("nll", "lse", "kl")},
        "dh": d.out(n, hidden) if gradient else None,
    }
    moved = 2 * n * hidden * (2 if gradient else 1) + int(weight_bytes(vocabulary * hidden, base)) + 20 * n + 12 * n * k
    return OpCase(DISTILLATION, d.dtype, arguments, label, moved, ops.flops(n, hidden, vocabulary, gradient), max(1.0, spread / 4), base)


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
    flops = sum(ops.weight_gradient_flops(n, hidden, vocabulary))
    return OpCase(CROSS_ENTROPY_WEIGHT_GRADIENT, d.dtype, arguments, bytes=moved, flops=flops)
