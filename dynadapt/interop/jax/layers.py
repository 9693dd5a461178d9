"""Norms, activations, embedding and attention for jax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .call import call, check_dtype, f32, like, varied

NORMS = ("rms", "layer")
ACTIVATIONS = ("swiglu", "gelu_tanh", "gelu")


def _number(kind, kinds):
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(kinds)}")
    return np.int32(kinds.index(kind))


# ---- norms ----


def norm(x, weight, bias=None, eps: float = 1e-5, kind: str = "rms"):
    """y like x [..., H]: RMSNorm ("rms") or LayerNorm ("layer") over the last dimension; weight, bias [H].

    Source: ``dynadapt.ops.norm``.
    """
    check_dtype("norm", x, weight=weight, bias=bias)
    return _norm(float(eps), int(_number(kind, NORMS)), *varied((x.reshape(-1, x.shape[-1]), weight, bias))).reshape(x.shape)


def add_norm(x, delta, weight, bias=None, eps: float = 1e-5, kind: str = "rms"):
    """(res, y): res = x + delta, rounded to x's dtype, and y = norm(res), in one pass."""
    check_dtype("add_norm", x, delta=delta, weight=weight, bias=bias)
    flat = -1, x.shape[-1]
    res, y = _add_norm(float(eps), int(_number(kind, NORMS)), *varied((x.reshape(flat), delta.reshape(flat), weight, bias)))
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


# ---- norm of query and key heads ----


def head_norm(qkv, q_weight, k_weight, hq: int, hkv: int, d: int, eps: float = 1e-6):
    """qkv [N, (hq + 2 hkv) d] with every query and key head normalised (RMS); values pass through. q_weight, k_weight [d].

    Source: ``dynadapt.ops.head_norm``.
    """
    check_dtype("head_norm", qkv, q_weight=q_weight, k_weight=k_weight)
    return _head_norm((hq, hkv, d), float(eps), *varied((qkv, q_weight, k_weight)))


def _heads(sizes):
    return dict(zip(("hq", "hkv", "d"), np.array(sizes, np.int32)))


def _head_norm_forward(sizes, eps, *inputs):
    results = [like(inputs[0]), f32(inputs[0].shape[0], sizes[0] + sizes[1])]
    return call("head_norm_forward", results, inputs, eps=np.float32(eps), **_heads(sizes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_norm(sizes, eps, qkv, q_weight, k_weight):
    return _head_norm_forward(sizes, eps, qkv, q_weight, k_weight)[0]


def _head_norm_kept(sizes, eps, *inputs):
    out, rstd = _head_norm_forward(sizes, eps, *inputs)
    return out, (*inputs, rstd)


def _head_norm_gradient(sizes, eps, kept, dout):
    qkv, q_weight, k_weight, _ = kept
    results = [like(qkv), f32(sizes[2]), f32(sizes[2])]
    dqkv, dq, dk = call("head_norm_backward", results, [dout, *kept], **_heads(sizes))
    return dqkv, dq.astype(q_weight.dtype), dk.astype(k_weight.dtype)


_head_norm.defvjp(_head_norm_kept, _head_norm_gradient)


# ---- embedding ----


def embedding(tokens, table, position_table=None, positions=None):
    """out [..., H] = table[tokens] (+ position_table[positions]); tokens, positions integers [...], tables [V, H] and [P, H].

    Source: ``dynadapt.ops.embedding``.
    """
    if (position_table is None) != (positions is None):
        raise ValueError("position_table and positions: expected both or neither")
    check_dtype("embedding", table, position_table=position_table)
    places = None if positions is None else jnp.broadcast_to(positions, tokens.shape).reshape(-1)
    return _embedding(*varied((tokens.reshape(-1), table, position_table, places))).reshape(*tokens.shape, table.shape[1])


@jax.custom_vjp
def _embedding(tokens, table, position_table, positions):
    results = [like(table, tokens.shape[0], table.shape[1])]
    return call("embedding_forward", results, [tokens, table, position_table, positions])[0]


def _embedding_gradient(kept, dout):
    tokens, table, position_table, positions = kept
    of = lambda index, t: call("embedding_backward", [f32(*t.shape)], [index, dout])[0].astype(t.dtype)  # noqa: E731
    return None, of(tokens, table), None if positions is None else of(positions, position_table), None


_embedding.defvjp(lambda *inputs: (_embedding(*inputs), inputs), _embedding_gradient)


# ---- activations ----


def activation(h, kind: str = "swiglu"):
    """y [..., F] from h [..., 2 F] (swiglu: silu(h[..., :F]) h[..., F:]) or [..., F] (gelu, gelu_tanh).

    Source: ``dynadapt.ops.activation``.
    """
    check_dtype("activation", h)
    number = int(_number(kind, ACTIVATIONS))
    if kind == "swiglu" and h.shape[-1] % 2:
        raise ValueError(f"h has shape {h.shape}: expected an even last dimension, gate and up side by side")
    y = _activation(number, h.reshape(-1, h.shape[-1]))
    return y.reshape(*h.shape[:-1], y.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activation(kind, h):
    width = h.shape[1] // 2 if ACTIVATIONS[kind] == "swiglu" else h.shape[1]
    return call("activation_forward", [like(h, h.shape[0], width)], [h], kind=np.int32(kind))[0]


_activation.defvjp(
    lambda kind, h: (_activation(kind, h), h), lambda kind, h, dy: call("activation_backward", [like(h)], [dy, h], kind=np.int32(kind))
)


# ---- attention ----


def attention(qkv, hq: int, hkv: int, d: int, *, slots=None, memory=None, cos=None, sin=None, scale: float | None = None):
    """out [N, hq d] of qkv [N, (hq + 2 hkv) d]: causal within each stream's segment, full over its memory.

    Differentiable in qkv; no gradient flows into memory. Arguments as for ``dynadapt.torch_ops.attention``.
    """
    slots = jnp.zeros(1, jnp.int32) if slots is None else slots
    mem_k, mem_v, mem_len = (None, None, None) if memory is None else memory
    check_dtype("attention", qkv, mem_k=mem_k, mem_v=mem_v)
    return _attention((hq, hkv, d, d**-0.5 if scale is None else float(scale)), *varied((qkv, (mem_k, mem_v, mem_len, slots, cos, sin))))


def _sizes(sizes):
    hq, hkv, d, scale = sizes
    return {**_heads((hq, hkv, d)), "scale": np.float32(scale)}


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
