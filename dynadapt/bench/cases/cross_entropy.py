"""Cases of the linear cross-entropy."""

from __future__ import annotations

import torch

from dynadapt.ops import cross_entropy as ops

from .base import Draw, Op, OpCase, weight_bytes
from .calls import after_reference

CROSS_ENTROPY = Op("cross_entropy", "nll lse dh", wide="weights nll lse", frozen="head", rows="h targets weights nll lse dh")
CROSS_ENTROPY_WEIGHT_GRADIENT = Op(
    "cross_entropy_weight_gradient", "dW", wide="weights lse dW", frozen="head", rows="h targets weights lse"
)
ADAPTED_CROSS_ENTROPY = Op(
    "adapted_cross_entropy", "u nll lse dh dU", wide="weights nll lse", frozen="head", rows="h slots targets weights u nll lse dh dU"
)
ADAPTED_CROSS_ENTROPY_GRADIENT = Op(
    "adapted_cross_entropy_gradient", "dA dBt", wide="weights lse dA dBt", frozen="head", rows="h slots targets weights lse u dU"
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
    softcap: float | None = None,
) -> OpCase:
    """``spread``: the standard deviation of the logits. In an odd case every seventh row is not scored."""
    arguments = {
        **_inputs(d, n, hidden, vocabulary, weights, spread, base),
        "nll": d.out(n, wide=True),
        "lse": d.out(n, wide=True),
        "dh": d.out(n, hidden) if gradient else None,
        "softcap": softcap,
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
    softcap: float | None = None,
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
        "softcap": softcap,
    }
    moved = 2 * n * hidden * (2 if gradient else 1) + int(weight_bytes(vocabulary * hidden, base)) + 20 * n + 12 * n * k
    return OpCase(DISTILLATION, d.dtype, arguments, label, moved, ops.flops(n, hidden, vocabulary, gradient), max(1.0, spread / 4), base)


def _row_slots(d: Draw, n: int, streams: int) -> torch.Tensor:
    """int32 [n], the slot of each row: streams of unequal lengths where the case is odd, some of a row or two."""
    slots, borders = d.slots(streams), torch.arange(1, streams) * n // streams
    if d.odd and streams > 1:
        borders[1::2] = borders[1::2] + n // (3 * streams)
    lengths = torch.diff(torch.cat([torch.tensor([0]), borders, torch.tensor([n])]))
    return slots.cpu().repeat_interleave(lengths).to(d.device)


def adapted_cross_entropy(
    d: Draw,
    n: int,
    hidden: int,
    vocabulary: int,
    rank: int,
    streams: int = 1,
    gradient: bool = True,
    below: bool = True,
    softcap: float | None = None,
    spread: float = 1.0,
    label: str = "",
    base: str = "same",
) -> OpCase:
    """``below``: whether something learns below the head."""
    inputs, slots = _inputs(d, n, hidden, vocabulary, True, spread, base), _row_slots(d, n, streams)
    A, Bt = d.per_slot(d.slot_count(streams), (rank, hidden), (rank, vocabulary))
    A, Bt = A.mul_(hidden**-0.5), Bt.mul_(spread * rank**-0.5 / 4)
    arguments = {
        **{name: inputs[name] for name in ("h", "head")},
        **{"A": A, "Bt": Bt, "slots": slots, "scale": 2.0},
        **{name: inputs[name] for name in ("targets", "weights")},
        "u": d.out(n, rank),
        **{name: d.out(n, wide=True) for name in ("nll", "lse")},
        "dh": d.out(n, hidden) if gradient and below else None,
        "dU": d.out(n, rank) if gradient else None,
        "softcap": softcap,
    }
    moved = 2 * n * hidden * (2 if gradient and below else 1) + int(weight_bytes(vocabulary * hidden, base)) + 20 * n
    moved += 2 * streams * rank * (hidden + vocabulary) + 2 * n * rank * (2 if gradient else 1)
    flops = sum(ops.adapted_flops(n, hidden, vocabulary, rank, gradient, below))
    return OpCase(ADAPTED_CROSS_ENTROPY, d.dtype, arguments, label, moved, flops, max(1.0, spread / 4), base)


def adapted_cross_entropy_gradient(
    d: Draw,
    n: int,
    hidden: int,
    vocabulary: int,
    rank: int,
    streams: int = 1,
    accumulate: bool = False,
    softcap: float | None = None,
    label: str = "",
) -> OpCase:
    forward = adapted_cross_entropy(d, n, hidden, vocabulary, rank, streams, softcap=softcap)
    f = after_reference(
        forward, "cpu" if n * vocabulary > 1 << 24 else "reference"
    )  # large: our own, which is checked as a case of its own
    count, (dA, dBt) = len(f["Bt"]), d.per_slot(len(f["Bt"]), (rank, hidden), (rank, vocabulary), wide=True)
    if not accumulate:
        dA, dBt = d.out(count, rank, hidden, wide=True), d.out(count, rank, vocabulary, wide=True)
        others = torch.ones(count, dtype=torch.bool, device=d.device)
        others[f["slots"].long()] = False
        dA[others], dBt[others] = 0.0, 0.0  # of adapters without rows, which stay
    arguments = {
        **{name: f[name] for name in ("h", "head", "Bt", "slots", "scale", "targets", "weights", "lse", "u", "dU")},
        **{"dA": dA, "dBt": dBt, "accumulate": accumulate, "softcap": softcap},
    }
    moved = 2 * n * (hidden + 2 * rank) + 2 * vocabulary * hidden + streams * rank * (4 * hidden + 6 * vocabulary) + 20 * n
    flops = sum(ops.adapted_gradient_flops(n, hidden, vocabulary, rank))
    return OpCase(ADAPTED_CROSS_ENTROPY_GRADIENT, d.dtype, arguments, label, moved, flops)


def cross_entropy_weight_gradient(d: Draw, n: int, hidden: int, vocabulary: int, accumulate: bool = False, softcap=None) -> OpCase:
    inputs = _inputs(d, n, hidden, vocabulary, True, 1.0)
    exact = torch.float64 if n * vocabulary < 1 << 24 else torch.float32
    arguments = {
        **inputs,
        "lse": torch.logsumexp(ops.capped(inputs["h"].to(exact) @ inputs["head"].to(exact).t(), softcap), 1).to(d.wide_dtype),
        "dW": d.wide(vocabulary, hidden) if accumulate else d.out(vocabulary, hidden, wide=True),
        "accumulate": accumulate,
        "softcap": softcap,
    }
    moved = 2 * (n * hidden + vocabulary * hidden) + 4 * vocabulary * hidden + 16 * n
    flops = sum(ops.weight_gradient_flops(n, hidden, vocabulary))
    return OpCase(CROSS_ENTROPY_WEIGHT_GRADIENT, d.dtype, arguments, bytes=moved, flops=flops)
