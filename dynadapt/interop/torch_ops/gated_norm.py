"""RMSNorm of every head times SiLU of a gate (ops/gated_norm.py)."""

from __future__ import annotations

import torch

from .registry import autograd, contiguous, functional, kernel, like, rows, wide, wide_zeros


@functional("gated_norm(Tensor x, Tensor gate, Tensor weight, float eps, int d) -> (Tensor y, Tensor rstd)")
def _gated_norm(x, gate, weight, eps, d):
    y, rstd = like(x), wide(x, x.shape[0], x.shape[1] // d)
    yield y, rstd
    kernel("gated_norm_forward", x)(rows(x), rows(gate), *contiguous(weight), eps, d, y, rstd)


@functional(
    "gated_norm_backward(Tensor dy, Tensor x, Tensor gate, Tensor weight, Tensor rstd, int d) -> (Tensor dx, Tensor dgate, Tensor dweight)",
    gradient=True,
)
def _gated_norm_backward(dy, x, gate, weight, rstd, d):
    dx, dgate, dweight = like(x), like(gate), wide_zeros(x, d)
    yield dx, dgate, dweight
    kernel("gated_norm_backward", x)(rows(dy), rows(x), rows(gate), *contiguous(weight, rstd), d, dx, dgate, dweight)


def _setup(ctx, inputs, output):
    x, gate, weight, _, ctx.d = inputs
    ctx.save_for_backward(x, gate, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, dy, _):
    x, gate, weight, rstd = ctx.saved_tensors
    dx, dgate, dweight = _gated_norm_backward(dy, x, gate, weight, rstd, ctx.d)
    return dx, dgate, dweight.to(weight.dtype), None, None


autograd(_gated_norm, _setup, _gradient)


def gated_norm(x, gate, weight, d: int, eps: float = 1e-6) -> torch.Tensor:
    """x [N, H d] with every head of d normalised (RMS), times weight [d] and SiLU of gate [N, H d].

    Source: ``dynadapt.ops.gated_norm``.
    """
    return _gated_norm(x, gate, weight, eps, d)[0]
