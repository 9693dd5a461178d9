"""Norm of query and key heads for jax."""

from __future__ import annotations

import functools

import jax
import numpy as np

from dynadapt.ops.head_norm import normed_pieces

from .call import call, check_dtype, f32, heads, like, varied


def head_norm(qkv, q_weight, k_weight, hq: int, hkv: int, d: int, eps: float = 1e-6):
    """qkv [N, (hq + 2 hkv) d] with every query and key head normalised (RMS); values pass through. q_weight, k_weight [d]; with
    [hq d] and [hkv d] all query heads of a row are normalised as one, and all its key heads.

    Source: ``dynadapt.ops.head_norm``.
    """
    check_dtype("head_norm", qkv, q_weight=q_weight, k_weight=k_weight)
    return _head_norm((hq, hkv, d), float(eps), *varied((qkv, q_weight, k_weight)))


def _head_norm_forward(sizes, eps, *inputs):
    results = [like(inputs[0]), f32(inputs[0].shape[0], normed_pieces(*sizes, inputs[1]))]
    return call("head_norm_forward", results, inputs, eps=np.float32(eps), **heads(*sizes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_norm(sizes, eps, qkv, q_weight, k_weight):
    return _head_norm_forward(sizes, eps, qkv, q_weight, k_weight)[0]


def _head_norm_kept(sizes, eps, *inputs):
    out, rstd = _head_norm_forward(sizes, eps, *inputs)
    return out, (*inputs, rstd)


def _head_norm_gradient(sizes, eps, kept, dout):
    qkv, q_weight, k_weight, _ = kept
    results = [like(qkv), f32(q_weight.shape[0]), f32(k_weight.shape[0])]
    dqkv, dq, dk = call("head_norm_backward", results, [dout, *kept], **heads(*sizes))
    return dqkv, dq.astype(q_weight.dtype), dk.astype(k_weight.dtype)


_head_norm.defvjp(_head_norm_kept, _head_norm_gradient)
