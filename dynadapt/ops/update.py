"""One optimizer step for every learned tensor of every stream, on flat buffers.

Per stream: g = grad, clipped to a global 2-norm of ``clip`` (g *= min(1, clip / (|g| + 1e-6)), 0 = none). A stream
whose gradient is not finite is skipped: only its gradient is zeroed. Then, element by element,

    sgd     first = momentum first + g                        d = lr first
    adam    first, second = moving averages, bias-corrected   d = lr mhat / (sqrt(vhat) + eps)      (arXiv 1412.6980)
    adamw   adam, and                                         d += lr weight_decay master           (arXiv 1711.05101)
    rms     stat = frozen RMS of gradients                    d = lr g / (stat + eps)               (arXiv 1709.07432, code)

    master += decay prior_rate (prior - master) - d
    working = master rounded;  grad = 0

lr [slots] and step [slots] are read from memory, so that a captured graph can replay the step.
"""

from __future__ import annotations

import torch

from .dispatch import reference

KINDS = ("sgd", "adam", "adamw", "rms")


def _direction(kind, slot, g, first, second, stat, master, step, lr, beta1, beta2, eps, weight_decay, momentum):
    if kind == "sgd":
        if momentum:
            first[slot].mul_(momentum).add_(g)
            g = first[slot]
        return lr * g
    if kind == "rms":
        return lr * g / (stat + eps)
    second[slot].mul_(beta2).add_((1 - beta2) * g * g)
    mean = g
    if beta1:
        first[slot].mul_(beta1).add_((1 - beta1) * g)
        mean = first[slot] / (1 - beta1**step)
    d = lr * mean / ((second[slot] / (1 - beta2**step)).sqrt() + eps)
    return d + lr * weight_decay * master[slot] if kind == "adamw" else d


@reference
def update(
    kind, master, grad, first, second, prior, stat, working, slots, lr, step, decay, clip,
    beta1, beta2, eps, weight_decay, momentum, norms, skipped, prior_rate=None,
) -> None:
    """master, grad, first, second [slots, P]; prior, stat, prior_rate [P]; working [slots, P] or None when master serves.

    slots int32 [S]; lr float32 [slots]; step int32 [slots], counted up for the streams that move.
    Writes norms [S] (before clipping) and skipped int32 [S].
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    for i, slot in enumerate(slots.tolist()):
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
        d = _direction(kind, slot, g, first, second, stat, master, int(step[slot]), float(lr[slot]),
                       beta1, beta2, eps, weight_decay, momentum)
        if decay:
            rate = decay if prior_rate is None else decay * prior_rate
            master[slot] += rate * (prior - master[slot])
        master[slot] -= d
        if working is not None:
            working[slot] = master[slot]
        grad[slot].zero_()


def flops(parameters: int, kind: str, decay: bool, clip: bool, momentum: bool = False, beta1: bool = True) -> int:
    """Arithmetic per element as written above (square roots and divisions count one); torch's counter counts none of it."""
    per = 2 + (1 if clip else 0)  # squared norm, clip
    if kind == "sgd":
        per += 1 + (2 if momentum else 0)
    elif kind == "rms":
        per += 3
    else:
        per += 4 + (4 if beta1 else 0) + 5 + (2 if kind == "adamw" else 0)
    return parameters * (per + (3 if decay else 0) + 1)
