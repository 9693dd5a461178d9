"""Update in the gradient kernel: what the fused ops need beside the activations, and when they may be used.

SGD and RMS move an element by its own gradient alone. Where nothing asks for the norm of the whole gradient (clip = 0)
and no gradient is kept between segments, the kernel that computes a gradient tile can move the tile's weights itself, and
the float32 gradient never exists in memory (ops/fused_update.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dynadapt.ops.fused_update import TensorState, UpdateRule


@dataclass
class Fused:
    """One step's part in it: moving int32 [S] (0: stays), lr float32 [slots], skipped int32 [S]."""

    moving: torch.Tensor
    rule: UpdateRule
    lr: torch.Tensor
    skipped: torch.Tensor


def update_rule(optimizer) -> UpdateRule:
    h = optimizer.hyper()
    return UpdateRule(optimizer.kind, float(optimizer.decay), h["momentum"], h["eps"])


def why_not_fused(optimizer, accumulate: bool, whole_model: bool = False) -> str | None:
    """None when the update can ride in the gradient kernels, else the reason."""
    if whole_model:
        return "gradients of norms, biases, embedding and head have no kernel that updates"
    if optimizer.kind not in ("sgd", "rms"):
        return f"{type(optimizer).__name__} keeps a second moment"
    if optimizer.clip:
        return f"clip={optimizer.clip:g} needs the norm of the whole gradient first"
    return "accumulate=True keeps gradients between segments" if accumulate else None


def tensor_state(state, name: str) -> TensorState:
    """Views of one named tensor in all of a FlatState's buffers."""
    view = lambda buffer: None if buffer is None else state.layout.view(buffer, name)  # noqa: E731
    return TensorState(
        view(state.master), view(state.working), view(state.first), view(state.prior), view(state.stat), view(state.prior_rate)
    )
