"""Linear layers with per-stream adapters (ops/linear.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import linear as op_linear

from .bias_gradient import bias_gradient
from .lora_gradient import lora_gradient, slots_of
from .packing import matrices
from .registry import autograd, contiguous, functional, kernel, rows
from .weight_gradient import weight_gradient


def _linear_flops(x, weights, bias, A, Bt, slots, scale):
    return op_linear.forward_flops(x[0], x[1], [w[0] for w in weights], Bt[1] if Bt is not None else 0)


@functional(
    "linear(Tensor x, Tensor[] weights, Tensor? bias, Tensor? A, Tensor? Bt, Tensor? slots, float scale) -> (Tensor y, Tensor u)",
    _linear_flops,
)
def _linear(x, weights, bias, A, Bt, slots, scale):
    y = x.new_empty(x.shape[0], sum(w.shape[0] for w in weights))
    u = x.new_empty(x.shape[0], 0 if A is None else A.shape[1])  # x A^T, for backward
    yield y, u
    bias, A, Bt = contiguous(bias, A, Bt)
    parts = matrices("linear_forward", weights, x)
    kernel("linear_forward", x)(rows(x), parts, bias, A, Bt, slots_of(slots, A), scale, None if A is None else u, y)


def _backward_flops(dy, weights, A, Bt, slots, scale, need_dx):
    return op_linear.backward_flops(dy[0], weights[0][1], [w[0] for w in weights], Bt[1] if Bt is not None else 0, need_dx)


@functional(
    "linear_backward(Tensor dy, Tensor[] weights, Tensor? A, Tensor? Bt, Tensor? slots, float scale, bool need_dx) -> "
    "(Tensor dU, Tensor dx)",
    _backward_flops,
    gradient=True,
)
def _linear_backward(dy, weights, A, Bt, slots, scale, need_dx):
    dU = dy.new_empty(dy.shape[0], 0 if A is None else A.shape[1])
    dx = dy.new_empty(dy.shape[0] if need_dx else 0, weights[0].shape[1])
    yield dU, dx
    dy, A, Bt = contiguous(dy, A, Bt)
    parts = matrices("linear_backward", weights, dy)
    kernel("linear_backward", dy)(dy, parts, A, Bt, slots_of(slots, A), scale, None if A is None else dU, dx if need_dx else None)


def _setup(ctx, inputs, output):
    x, weights, bias, A, Bt, slots, scale = inputs
    ctx.save_for_backward(x, A, Bt, slots, output[1], *weights)
    ctx.scale, ctx.bias_dtype = scale, None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, dy, _):
    x, A, Bt, slots, u, *weights = ctx.saved_tensors
    needs_x, needs_weights, needs_bias, needs_A, needs_Bt = ctx.needs_input_grad[:5]
    dU, dx = _linear_backward(dy, weights, A, Bt, slots, ctx.scale, needs_x)
    dA = dBt = None
    sizes = [w.shape[0] for w in weights]
    if needs_A or needs_Bt:
        dA, dBt = lora_gradient(dy, x, u, dU, sizes, ctx.scale, slots, A.shape[0])
        dA, dBt = dA.to(A.dtype), dBt.to(Bt.dtype)
    dweights = [None] * len(weights)
    for p, (part, weight) in enumerate(zip(dy.split(sizes, 1), weights)):
        if needs_weights[p]:
            dweights[p] = weight_gradient(part, x, None).to(weight.dtype)
    dbias = bias_gradient(dy).to(ctx.bias_dtype) if needs_bias else None
    return dx if needs_x else None, dweights, dbias, dA, dBt, None, None


autograd(_linear, _setup, _gradient)


def linear(x, weights, bias=None, A=None, Bt=None, slots=None, scale: float = 1.0) -> torch.Tensor:
    """y [..., O] = x W^T + bias + scale (x A^T) Bt, differentiable in everything but ``slots``.

    Args:
        x: [..., K], float32, bfloat16, or float64 (served by the reference).
        weights: [O, K], or a list of P weights [O_p, K] that read the same input (q, k, v; gate, up); outputs stand side by side.
        bias: [O] over all parts, or None.
        A, Bt: [slots, P R, K] and [slots, R, O], both or neither; a matrix [P R, K] and [R, O] is one slot.
        slots: int32 [S]: of N rows, i N/S .. (i+1) N/S - 1 belong to slots[i]. None: all to slot 0.
        scale: alpha / R.

    Raises:
        ValueError: naming the argument whose shape, dtype or device does not fit.

    Source: Hu et al. 2021, LoRA (arXiv 2106.09685), eq. 3; ``dynadapt.ops.linear``.
    """
    if (A is None) != (Bt is None):
        raise ValueError("A and Bt: expected both or neither")
    weights = [weights] if isinstance(weights, torch.Tensor) else list(weights)
    if A is not None and A.dim() == 2:
        A, Bt = A[None], Bt[None]
    y, _ = _linear(x.reshape(-1, x.shape[-1]), weights, bias, A, Bt, slots, scale)
    return y.reshape(*x.shape[:-1], y.shape[1])
