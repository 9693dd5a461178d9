"""Update in the gradient kernel: what the fused ops need beside the activations, and when they may be used.

Some optimizers (``Kind.fused``) move an element by its own gradient alone. Where nothing asks for the norm of the whole gradient (clip = 0)
and no gradient is kept between segments, the kernel that computes a gradient tile can move the tile's weights itself, and
the float32 gradient never exists in memory (ops/update.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dynadapt.ops.update import UpdateRule


@dataclass
class Fused:
    """One step's part in it: moving int32 [S] (0: stays), lr float32 [slots], skipped int32 [S]."""

    moving: torch.Tensor
    rule: UpdateRule
    lr: torch.Tensor
    skipped: torch.Tensor


def why_not_fused(
    optimizer, accumulate: bool, beside: bool = False, around: Sequence[str] = (), rates_differ: bool = False, dora: bool = False
) -> str | None:
    """None when the update can ride in the gradient kernels, else the reason. ``beside``: whether more than linear weights learns. ``around``:
    what has adapters of the head and the embedding."""
    if beside:
        return "gradients of norms, biases, embedding and head have no kernel that updates"
    if dora:
        return "the gradient of DoRA's lengths has no kernel that updates"
    if around:
        return f"the gradient of the adapter of {' and '.join(around)} has no kernel that updates"
    if not optimizer.rule().arithmetic.fused:
        return f"{type(optimizer).__name__} is not in the gradient kernels"
    if rates_differ:
        return "rate_pattern or b_rate gives linears rates of their own, and the gradient kernels have one"
    if optimizer.clip:
        return f"clip={optimizer.clip:g} needs the norm of the whole gradient first"
    return "accumulate=True keeps gradients between segments" if accumulate else None
