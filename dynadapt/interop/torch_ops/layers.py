"""Norms, activations and embedding (ops/norm.py, ops/head_norm.py, ops/activation.py, ops/embedding.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import activation as op_activation
from dynadapt.ops import norm as op_norm

from .registry import autograd, contiguous, functional, kernel, no_second_derivative, wide, wide_zeros


def _like(t):
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _check_kind(kind, kinds):
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(kinds)}")


# ---- norms ----


@functional("norm(Tensor x, Tensor weight, Tensor? bias, float eps, str kind) -> (Tensor y, Tensor stat)")
def _norm(x, weight, bias, eps, kind):
    y, stat = _like(x), wide(x, x.shape[0], 2)
    yield y, stat
    x, weight, bias = contiguous(x, weight, bias)
    kernel("norm_forward", x)(x, None, weight, bias, eps, kind, None, y, stat)


@functional("add_norm(Tensor x, Tensor delta, Tensor weight, Tensor? bias, float eps, str kind) -> (Tensor res, Tensor y, Tensor stat)")
def _add_norm(x, delta, weight, bias, eps, kind):
    res, y, stat = _like(x), _like(x), wide(x, x.shape[0], 2)
    yield res, y, stat
    x, delta, weight, bias = contiguous(x, delta, weight, bias)
    kernel("norm_forward", x)(x, delta, weight, bias, eps, kind, res, y, stat)


@functional(
    "norm_backward(Tensor dy, Tensor res, Tensor weight, Tensor stat, str kind, Tensor? dres) -> (Tensor dx, Tensor dweight, Tensor dbias)"
)
def _norm_backward(dy, res, weight, stat, kind, dres=None):
    dx, dweight, dbias = _like(dy), wide_zeros(dy, dy.shape[1]), wide_zeros(dy, dy.shape[1])
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
no_second_derivative(_norm_backward)


def norm(x, weight, bias=None, eps: float = 1e-5, kind: str = "rms") -> torch.Tensor:
    """y like x [..., H]: RMSNorm (``kind`` "rms") or LayerNorm ("layer") over the last dimension; weight, bias [H] of x's dtype.

    Source: ``dynadapt.ops.norm``.
    """
    _check_kind(kind, op_norm.KINDS)
    return _norm(x.reshape(-1, x.shape[-1]), weight, bias, eps, kind)[0].reshape(x.shape)


def add_norm(x, delta, weight, bias=None, eps: float = 1e-5, kind: str = "rms") -> tuple[torch.Tensor, torch.Tensor]:
    """(res, y) with res = x + delta, rounded to x's dtype, and y = norm(res): a residual and the next norm in one pass."""
    _check_kind(kind, op_norm.KINDS)
    flat = -1, x.shape[-1]
    res, y, _ = _add_norm(x.reshape(flat), delta.reshape(flat), weight, bias, eps, kind)
    return res.reshape(x.shape), y.reshape(x.shape)


# ---- norm of query and key heads ----


@functional("head_norm(Tensor qkv, Tensor q_weight, Tensor k_weight, float eps, int hq, int hkv, int d) -> (Tensor out, Tensor rstd)")
def _head_norm(qkv, q_weight, k_weight, eps, hq, hkv, d):
    out, rstd = _like(qkv), wide(qkv, qkv.shape[0], hq + hkv)
    yield out, rstd
    qkv, q_weight, k_weight = contiguous(qkv, q_weight, k_weight)
    kernel("head_norm_forward", qkv)(qkv, q_weight, k_weight, eps, hq, hkv, d, out, rstd)


@functional(
    "head_norm_backward(Tensor dout, Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor rstd, int hq, int hkv, "
    "int d) -> (Tensor dqkv, Tensor dq_weight, Tensor dk_weight)"
)
def _head_norm_backward(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d):
    dqkv, dq, dk = _like(dout), wide_zeros(dout, d), wide_zeros(dout, d)
    yield dqkv, dq, dk
    dout, qkv, q_weight, k_weight, rstd = contiguous(dout, qkv, q_weight, k_weight, rstd)
    kernel("head_norm_backward", dout)(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq, dk)


def _setup_head_norm(ctx, inputs, output):
    qkv, q_weight, k_weight, _, *ctx.sizes = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient_head_norm(ctx, dout, _):
    qkv, q_weight, k_weight, rstd = ctx.saved_tensors
    dqkv, dq, dk = _head_norm_backward(dout, qkv, q_weight, k_weight, rstd, *ctx.sizes)
    return dqkv, dq.to(q_weight.dtype), dk.to(k_weight.dtype), None, None, None, None


autograd(_head_norm, _setup_head_norm, _gradient_head_norm)
no_second_derivative(_head_norm_backward)


def head_norm(qkv, q_weight, k_weight, hq: int, hkv: int, d: int, eps: float = 1e-6) -> torch.Tensor:
    """qkv [N, (hq + 2 hkv) d] with every query and key head normalised (RMS); values pass through. q_weight, k_weight [d].

    Source: ``dynadapt.ops.head_norm``.
    """
    return _head_norm(qkv, q_weight, k_weight, eps, hq, hkv, d)[0]


# ---- activations ----


@functional("activation(Tensor h, str kind) -> Tensor")
def _activation(h, kind):
    y = h.new_empty(h.shape[0], h.shape[1] // 2 if kind == "swiglu" else h.shape[1])
    yield y
    kernel("activation_forward", h)(h.contiguous(), kind, y)


@functional("activation_backward(Tensor dy, Tensor h, str kind) -> Tensor")
def _activation_backward(dy, h, kind):
    dh = _like(h)
    yield dh
    dy, h = contiguous(dy, h)
    kernel("activation_backward", h)(dy, h, kind, dh)


def _setup_activation(ctx, inputs, output):
    h, ctx.kind = inputs
    ctx.save_for_backward(h)


def _gradient_activation(ctx, dy):
    return _activation_backward(dy, *ctx.saved_tensors, ctx.kind), None


autograd(_activation, _setup_activation, _gradient_activation)
no_second_derivative(_activation_backward)


def activation(h, kind: str = "swiglu") -> torch.Tensor:
    """y [..., F] from h [..., 2 F] (swiglu: silu(h[..., :F]) h[..., F:]) or [..., F] (gelu, gelu_tanh).

    Source: ``dynadapt.ops.activation``.
    """
    _check_kind(kind, op_activation.KINDS)
    if kind == "swiglu" and h.shape[-1] % 2:
        raise ValueError(f"h has shape {tuple(h.shape)}: expected an even last dimension, gate and up side by side")
    y = _activation(h.reshape(-1, h.shape[-1]), kind)
    return y.reshape(*h.shape[:-1], y.shape[1])


# ---- embedding ----


@functional("embedding(Tensor tokens, Tensor table, Tensor? position_table, Tensor? positions) -> Tensor")
def _embedding(tokens, table, position_table=None, positions=None):
    out = table.new_empty(tokens.shape[0], table.shape[1])
    yield out
    tokens, table, position_table, positions = contiguous(tokens, table, position_table, positions)
    kernel("embedding_forward", table)(tokens, table, position_table, positions, out)


@functional("embedding_backward(Tensor tokens, Tensor dout, SymInt rows) -> Tensor")
def _embedding_backward(tokens, dout, rows):
    dtable = wide_zeros(dout, rows, dout.shape[1])
    yield dtable
    tokens, dout = contiguous(tokens, dout)
    kernel("embedding_backward", dout)(tokens, dout, dtable)


def _setup_embedding(ctx, inputs, output):
    tokens, table, position_table, positions = inputs
    ctx.save_for_backward(tokens, positions)
    ctx.rows = table.shape[0], None if position_table is None else position_table.shape[0]


def _gradient_embedding(ctx, dout):
    tokens, positions = ctx.saved_tensors
    _, needs_table, needs_positions, _ = ctx.needs_input_grad
    grads = [
        _embedding_backward(index, dout, rows).to(dout.dtype) if needed else None
        for index, rows, needed in ((tokens, ctx.rows[0], needs_table), (positions, ctx.rows[1], needs_positions))
    ]
    return None, *grads, None


autograd(_embedding, _setup_embedding, _gradient_embedding)
no_second_derivative(_embedding_backward)


def embedding(tokens, table, position_table=None, positions=None) -> torch.Tensor:
    """out [..., H] = table[tokens] (+ position_table[positions]); tokens, positions int64 [...], the tables [V, H] and [P, H].

    Source: ``dynadapt.ops.embedding``.
    """
    if (position_table is None) != (positions is None):
        raise ValueError("position_table and positions: expected both or neither")
    places = None if positions is None else positions.expand(tokens.shape).reshape(-1)
    return _embedding(tokens.reshape(-1), table, position_table, places).reshape(*tokens.shape, table.shape[1])
