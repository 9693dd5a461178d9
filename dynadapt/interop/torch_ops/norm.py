"""Norms, alone and behind a residual add (ops/norm.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import norm as op_norm

from .registry import autograd, check_kind, contiguous, functional, kernel, like, wide, wide_zeros


@functional("norm(Tensor x, Tensor weight, Tensor? bias, float eps, str kind) -> (Tensor y, Tensor stat)")
def _norm(x, weight, bias, eps, kind):
    y, stat = like(x), wide(x, x.shape[0], 2)
    yield y, stat
    x, weight, bias = contiguous(x, weight, bias)
    kernel("norm_forward", x)(x, None, weight, bias, eps, kind, None, y, stat)


@functional("add_norm(Tensor x, Tensor delta, Tensor weight, Tensor? bias, float eps, str kind) -> (Tensor res, Tensor y, Tensor stat)")
def _add_norm(x, delta, weight, bias, eps, kind):
    res, y, stat = like(x), like(x), wide(x, x.shape[0], 2)
    yield res, y, stat
    x, delta, weight, bias = contiguous(x, delta, weight, bias)
    kernel("norm_forward", x)(x, delta, weight, bias, eps, kind, res, y, stat)


@functional(
    "norm_backward(Tensor dy, Tensor res, Tensor weight, Tensor stat, str kind, Tensor? dres) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    gradient=True,
)
def _norm_backward(dy, res, weight, stat, kind, dres=None):
    dx, dweight, dbias = like(dy), wide_zeros(dy, dy.shape[1]), wide_zeros(dy, dy.shape[1])
    yield dx, dweight, dbias
    dy, res, weight, stat, dres = contiguous(dy, res, weight, stat, dres)
    kernel("norm_backward", dy)(dy, res, weight, stat, kind, dres, dx, dweight, dbias)


def _setup_norm(ctx, inputs, output):
    x, weight, bias, _, ctx.kind = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.bias_dtype = None if bias is None else bias.dtype


def _setup_add_norm(ctx, inputs, output):
    _, _, weight, bias, _, ctx.kind = inputs
    ctx.save_for_backward(output[0], weight, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.bias_dtype = None if bias is None else bias.dtype


def _norm_gradients(ctx, dy, dres):
    res, weight, stat = ctx.saved_tensors
    dx, dweight, dbias = _norm_backward(dy, res, weight, stat, ctx.kind, dres)
    return dx, dweight.to(weight.dtype), None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)


def _gradient_norm(ctx, dy, _):
    return *_norm_gradients(ctx, dy, None), None, None


def _gradient_add_norm(ctx, dres, dy, _):
    dx, dweight, dbias = _norm_gradients(ctx, dy, dres)
    return dx, dx, dweight, dbias, None, None


autograd(_norm, _setup_norm, _gradient_norm)
autograd(_add_norm, _setup_add_norm, _gradient_add_norm)


def norm(x, weight, bias=None, eps: float = 1e-5, kind: str = "rms") -> torch.Tensor:
    """y like x [..., H]: RMSNorm (``kind`` "rms") or LayerNorm ("layer") over the last dimension; weight, bias [H] of x's dtype.

    Source: ``dynadapt.ops.norm``.
    """
    check_kind(kind, op_norm.KINDS)
    return _norm(x.reshape(-1, x.shape[-1]), weight, bias, eps, kind)[0].reshape(x.shape)


def add_norm(x, delta, weight, bias=None, eps: float = 1e-5, kind: str = "rms") -> tuple[torch.Tensor, torch.Tensor]:
    """(res, y) with res = x + delta, rounded to x's dtype, and y = norm(res): a residual and the next norm in one pass."""
    check_kind(kind, op_norm.KINDS)
    flat = -1, x.shape[-1]
    res, y, _ = _add_norm(x.reshape(flat), delta.reshape(flat), weight, bias, eps, kind)
    return res.reshape(x.shape), y.reshape(x.shape)
