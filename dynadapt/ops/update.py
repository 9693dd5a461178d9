"""One optimizer step for every learned tensor of every stream, on flat buffers.

Per stream: g = grad, clipped to a global 2-norm of ``clip`` (g *= min(1, clip / (|g| + 1e-6)), 0 = none). A stream
whose gradient is not finite is skipped: only its gradient is zeroed. Then d = the optimizer's direction (one file each
in adapt/optimizers), and element by element

    master += decay prior_rate (prior - master) - d
    working = master rounded;  grad = 0

lr [slots] and step [slots] are read from memory, so that a captured graph can replay the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Moments:
    """What a direction may read and change: one stream's rows, each [P]; ``step`` counts from 1."""

    master: torch.Tensor
    first: torch.Tensor | None
    second: torch.Tensor | None
    stat: torch.Tensor | None
    lr: float
    step: int


DIRECTIONS: dict[str, Callable] = {}
DIRECTION_FLOPS: dict[str, Callable] = {}


def direction(kind: str, flops: Callable):
    """Register an optimizer's reference: ``function(g [P], Moments, hyper) -> d [P]``; ``flops(hyper)`` per element."""

    def register(function):
        DIRECTIONS[kind], DIRECTION_FLOPS[kind] = function, flops
        return function

    return register


def update(
    kind,
    master,
    grad,
    first,
    second,
    prior,
    stat,
    working,
    slots,
    lr,
    step,
    decay,
    clip,
    beta1,
    beta2,
    eps,
    weight_decay,
    momentum,
    norms,
    skipped,
    prior_rate=None,
) -> None:
    """master, grad, first, second [slots, P]; prior, stat, prior_rate [P]; working [slots, P] or None when master serves.

    slots int32 [S], -1 for a stream that does not move (norm 0, not skipped, gradient kept); lr float32 [slots];
    step int32 [slots], counted up for the streams that move.
    Writes norms [S] (before clipping) and skipped int32 [S].
    """
    if kind not in DIRECTIONS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(sorted(DIRECTIONS))}")
    hyper = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    row = lambda t, slot: None if t is None else t[slot]  # noqa: E731
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            norms[i], skipped[i] = 0, 0
            continue
        g = grad[slot]
        norm = g.double().square().sum().sqrt()
        norms[i] = norm
        skipped[i] = int(not torch.isfinite(norm))
        if skipped[i]:
            g.zero_()
            continue
        step[slot] += 1
        if clip:
            g = g * min(1.0, clip / (norm.item() + 1e-6))
        moments = Moments(master[slot], row(first, slot), row(second, slot), stat, float(lr[slot]), int(step[slot]))
        d = DIRECTIONS[kind](g, moments, hyper)
        if decay:
            rate = decay if prior_rate is None else decay * prior_rate
            master[slot] += rate * (prior - master[slot])
        master[slot] -= d
        if working is not None:
            working[slot] = master[slot]
        grad[slot].zero_()


def flops(parameters: int, optimizer) -> int:
    """Arithmetic per element as written above and in the optimizer's file; torch's counter counts none of it."""
    per = 2 + (1 if optimizer.clip else 0)  # squared norm, clip
    per += DIRECTION_FLOPS[optimizer.kind](optimizer.hyper()) + (3 if optimizer.decay else 0) + 1
    return parameters * per
