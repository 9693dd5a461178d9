"""Causal attention over [sinks; memory; segment] for jax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .call import call, check_dtype, f32, heads, like, varied


def attention(
    qkv,
    hq: int,
    hkv: int,
    d: int,
    *,
    slots=None,
    memory=None,
    cos=None,
    sin=None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
):
    """out [N, hq d] of qkv [N, (hq + 2 hkv) d]: causal within each stream's segment, full over its memory unless a window ends before.

    Differentiable in qkv; no gradient flows into memory. Arguments as for ``dynadapt.torch_ops.attention``.
    """
    slots = jnp.zeros(1, jnp.int32) if slots is None else slots
    mem_k, mem_v, mem_len = (None, None, None) if memory is None else memory
    check_dtype("attention", qkv, mem_k=mem_k, mem_v=mem_v)
    sizes = hq, hkv, d, d**-0.5 if scale is None else float(scale), 0 if window is None else window, softcap or 0.0
    return _attention(sizes, *varied((qkv, (mem_k, mem_v, mem_len, slots, cos, sin))))


def _sizes(sizes):
    hq, hkv, d, scale, window, softcap = sizes
    return {**heads(hq, hkv, d), "scale": np.float32(scale), "window": np.int32(window), "softcap": np.float32(softcap)}


def _attention_forward(sizes, qkv, others):
    streams = others[3].shape[0]
    results = [like(qkv, qkv.shape[0], sizes[0] * sizes[2]), f32(streams, sizes[0], qkv.shape[0] // streams)]
    return call("attention_forward", results, [qkv, *others], **_sizes(sizes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(sizes, qkv, others):
    return _attention_forward(sizes, qkv, others)[0]


def _attention_kept(sizes, qkv, others):
    out, lse = _attention_forward(sizes, qkv, others)
    return out, (qkv, out, lse, others)


def _attention_gradient(sizes, kept, dout):
    qkv, out, lse, others = kept
    return call("attention_backward", [like(qkv)], [dout, qkv, out, lse, *others], **_sizes(sizes))[0], None


_attention.defvjp(_attention_kept, _attention_gradient)
