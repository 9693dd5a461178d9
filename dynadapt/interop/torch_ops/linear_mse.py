"""Linear read-out with squared error (ops/linear_mse.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import linear_mse as op_mse

from .registry import autograd, contiguous, functional, kernel, once, wide, wide_zeros


@functional(
    "linear_mse(Tensor h, Tensor weight, Tensor? bias, Tensor target) -> (Tensor pred, Tensor loss)",
    lambda h, weight, bias, target: op_mse.flops(h[0], h[1], False),
)
def _linear_mse(h, weight, bias, target):
    pred, loss = wide(h, h.shape[0]), wide(h, h.shape[0])
    yield pred, loss
    h, weight, bias, target = contiguous(h, weight, bias, target)
    kernel("linear_mse", h)(h, weight, bias, target, None, pred, loss, None, None, None)


@functional(
    "linear_mse_backward(Tensor h, Tensor weight, Tensor? bias, Tensor target, Tensor g) -> (Tensor dh, Tensor dweight, Tensor dbias)",
    lambda h, weight, bias, target, g: op_mse.flops(h[0], h[1], True),
    gradient=True,
)
def _linear_mse_backward(h, weight, bias, target, g):
    dh, dweight, dbias = torch.empty_like(h, memory_format=torch.contiguous_format), wide_zeros(h, h.shape[1]), wide_zeros(h, 1)
    yield dh, dweight, dbias
    h, weight, bias, target, g = contiguous(h, weight, bias, target, g)
    pred, loss = wide(h, h.shape[0]), wide(h, h.shape[0])
    kernel("linear_mse", h)(h, weight, bias, target, g, pred, loss, dh, dweight, dbias)


def _setup(ctx, inputs, output):
    h, weight, bias, target = inputs
    ctx.save_for_backward(h, weight, bias, target, output[0])
    ctx.mark_non_differentiable(output[0])


def _gradient(ctx, _, g):
    h, weight, bias, target, pred = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dh = dweight = dbias = None
    if any(needs[:3]):
        dh, dweight, dbias = _linear_mse_backward(h, weight, bias, target, g)
    return (
        dh if needs[0] else None,
        dweight.to(weight.dtype) if needs[1] and dweight is not None else None,
        dbias if needs[2] else None,
        once("linear_mse", -2 * g * (pred - target), h, weight, *[] if bias is None else [bias]) if needs[3] else None,
    )


autograd(_linear_mse, _setup, _gradient)


def linear_mse(h, weight, target, bias=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(pred, loss) [N], float32 or wider: pred = h . weight + bias, loss = (pred - target)^2. Only ``loss`` is differentiable.

    Args:
        h: [N, H]; weight: [H] of the same dtype; target: float32 [N]; bias: float32 [1] or None.

    Source: ``dynadapt.ops.linear_mse``.
    """
    return _linear_mse(h, weight, bias, target)
