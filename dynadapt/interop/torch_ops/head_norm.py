"""Norm of query and key heads (ops/head_norm.py)."""

from __future__ import annotations

import torch

from dynadapt.ops.head_norm import normed_pieces

from .registry import autograd, contiguous, functional, kernel, like, wide, wide_zeros


@functional("head_norm(Tensor qkv, Tensor q_weight, Tensor k_weight, float eps, int hq, int hkv, int d) -> (Tensor out, Tensor rstd)")
def _head_norm(qkv, q_weight, k_weight, eps, hq, hkv, d):
    out, rstd = like(qkv), wide(qkv, qkv.shape[0], normed_pieces(hq, hkv, d, q_weight))
    yield out, rstd
    qkv, q_weight, k_weight = contiguous(qkv, q_weight, k_weight)
    kernel("head_norm_forward", qkv)(qkv, q_weight, k_weight, eps, hq, hkv, d, out, rstd)


@functional(
    "head_norm_backward(Tensor dout, Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor rstd, int hq, int hkv, "
    "int d) -> (Tensor dqkv, Tensor dq_weight, Tensor dk_weight)",
    gradient=True,
)
def _head_norm_backward(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d):
    dqkv, dq, dk = like(dout), wide_zeros(dout, q_weight.shape[0]), wide_zeros(dout, k_weight.shape[0])
    yield dqkv, dq, dk
    dout, qkv, q_weight, k_weight, rstd = contiguous(dout, qkv, q_weight, k_weight, rstd)
    kernel("head_norm_backward", dout)(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq, dk)


def _setup(ctx, inputs, output):
    qkv, q_weight, k_weight, _, *ctx.sizes = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, dout, _):
    qkv, q_weight, k_weight, rstd = ctx.saved_tensors
    dqkv, dq, dk = _head_norm_backward(dout, qkv, q_weight, k_weight, rstd, *ctx.sizes)
    return dqkv, dq.to(q_weight.dtype), dk.to(k_weight.dtype), None, None, None, None


autograd(_head_norm, _setup, _gradient)


def head_norm(qkv, q_weight, k_weight, hq: int, hkv: int, d: int, eps: float = 1e-6) -> torch.Tensor:
    """qkv [N, (hq + 2 hkv) d] with every query and key head normalised (RMS); values pass through. q_weight, k_weight [d]; with
    [hq d] and [hkv d] all query heads of a row are normalised as one, and all its key heads.

    Source: ``dynadapt.ops.head_norm``.
    """
    return _head_norm(qkv, q_weight, k_weight, eps, hq, hkv, d)[0]
