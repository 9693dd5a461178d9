"""Norms, alone and behind a residual add, for jax."""

from __future__ import annotations

import functools

import jax
import numpy as np

from dynadapt.ops.norm import KINDS

from .call import call, check_dtype, f32, like, number_of, varied


def norm(x, weight, bias=None, eps: float = 1e-5, kind: str = "rms"):
    """y like x [..., H]: RMSNorm ("rms") or LayerNorm ("layer") over the last dimension; weight, bias [H].

    Source: ``dynadapt.ops.norm``.
    """
    check_dtype("norm", x, weight=weight, bias=bias)
    return _norm(float(eps), number_of(kind, KINDS), *varied((x.reshape(-1, x.shape[-1]), weight, bias))).reshape(x.shape)


def add_norm(x, delta, weight, bias=None, eps: float = 1e-5, kind: str = "rms"):
    """(res, y): res = x + delta, rounded to x's dtype, and y = norm(res), in one pass."""
    check_dtype("add_norm", x, delta=delta, weight=weight, bias=bias)
    flat = -1, x.shape[-1]
    res, y = _add_norm(float(eps), number_of(kind, KINDS), *varied((x.reshape(flat), delta.reshape(flat), weight, bias)))
    return res.reshape(x.shape), y.reshape(x.shape)


def _norm_forward(eps, kind, x, delta, weight, bias):
    results = [None if delta is None else like(x), like(x), f32(x.shape[0], 2)]
    return call("norm_forward", results, [x, delta, weight, bias], kind=np.int32(kind), eps=np.float32(eps))


def _norm_backward(kind, kept, dy, dres):
    res, weight, bias, stat = kept
    results = [like(res), f32(*weight.shape), f32(*weight.shape)]
    dx, dweight, dbias = call("norm_backward", results, [dy, res, weight, stat, dres], kind=np.int32(kind))
    return dx, dweight.astype(weight.dtype), None if bias is None else dbias.astype(bias.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(eps, kind, x, weight, bias):
    return _norm_forward(eps, kind, x, None, weight, bias)[1]


def _norm_kept(eps, kind, x, weight, bias):
    _, y, stat = _norm_forward(eps, kind, x, None, weight, bias)
    return y, (x, weight, bias, stat)


_norm.defvjp(_norm_kept, lambda eps, kind, kept, dy: _norm_backward(kind, kept, dy, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _add_norm(eps, kind, x, delta, weight, bias):
    return _norm_forward(eps, kind, x, delta, weight, bias)[:2]


def _add_norm_kept(eps, kind, x, delta, weight, bias):
    res, y, stat = _norm_forward(eps, kind, x, delta, weight, bias)
    return (res, y), (res, weight, bias, stat)


def _add_norm_gradient(eps, kind, kept, gradients):
    dres, dy = gradients
    dx, dweight, dbias = _norm_backward(kind, kept, dy, dres)
    return dx, dx, dweight, dbias


_add_norm.defvjp(_add_norm_kept, _add_norm_gradient)
