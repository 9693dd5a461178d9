"""Feed-forward activations (ops/activation.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import activation as op_activation
from dynadapt.ops.activation import GATED

from .registry import autograd, check_kind, contiguous, functional, kernel, like


@functional("activation(Tensor h, str kind) -> Tensor")
def _activation(h, kind):
    y = h.new_empty(h.shape[0], h.shape[1] // 2 if kind in GATED else h.shape[1])
    yield y
    kernel("activation_forward", h)(h.contiguous(), kind, y)


@functional("activation_backward(Tensor dy, Tensor h, str kind) -> Tensor", gradient=True)
def _activation_backward(dy, h, kind):
    dh = like(h)
    yield dh
    dy, h = contiguous(dy, h)
    kernel("activation_backward", h)(dy, h, kind, dh)


def _setup(ctx, inputs, output):
    h, ctx.kind = inputs
    ctx.save_for_backward(h)


def _gradient(ctx, dy):
    return _activation_backward(dy, *ctx.saved_tensors, ctx.kind), None


autograd(_activation, _setup, _gradient)


def activation(h, kind: str = "swiglu") -> torch.Tensor:
    """y [..., F] from h [..., 2 F] (swiglu: silu(h[..., :F]) h[..., F:]; geglu_tanh, glu: gelu_tanh, sigmoid in silu's place) or [..., F]
    (gelu, gelu_tanh).

    Source: ``dynadapt.ops.activation``.
    """
    check_kind(kind, op_activation.KINDS)
    if kind in GATED and h.shape[-1] % 2:
        raise ValueError(f"h has shape {tuple(h.shape)}: expected an even last dimension, gate and up side by side")
    y = _activation(h.reshape(-1, h.shape[-1]), kind)
    return y.reshape(*h.shape[:-1], y.shape[1])
