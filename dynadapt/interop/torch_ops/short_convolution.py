"""Causal depthwise convolution over a few tokens, then SiLU (ops/short_convolution.py)."""

from __future__ import annotations

import torch

from .registry import autograd, contiguous, functional, kernel, like, rows, wide_zeros


@functional("short_convolution(Tensor x, Tensor weight, Tensor? state, Tensor slots, Tensor? lengths) -> (Tensor y, Tensor final)")
def _short_convolution(x, weight, state, slots, lengths):
    y, final = like(x), x.new_empty(slots.shape[0], weight.shape[1] - 1, x.shape[1])
    yield y, final
    tensors = contiguous(weight, state, slots, lengths)
    kernel("short_convolution_forward", x)(rows(x), *tensors, y, final)


@functional(
    "short_convolution_backward(Tensor dy, Tensor x, Tensor weight, Tensor? state, Tensor slots, Tensor? lengths) "
    "-> (Tensor dx, Tensor dweight)",
    gradient=True,
)
def _short_convolution_backward(dy, x, weight, state, slots, lengths):
    dx, dweight = like(x), wide_zeros(x, *weight.shape)
    yield dx, dweight
    tensors = contiguous(weight, state, slots, lengths)
    kernel("short_convolution_backward", x)(rows(dy), rows(x), *tensors, dx, dweight)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, dy, _):
    dx, dweight = _short_convolution_backward(dy, *ctx.saved_tensors)
    return dx, dweight.to(ctx.saved_tensors[1].dtype), None, None, None


autograd(_short_convolution, _setup, _gradient)


def short_convolution(x, weight, *, slots=None, state=None, lengths=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [N, C], final [S, W - 1, C]): each channel of x [N, C] summed over its last W tokens with weight [C, W], then SiLU.

    Differentiable in x and weight through ``y``.

    Args:
        slots: int32 [S], the slot of each stream's state; None: one stream.
        state: [slots, W - 1, C], the rows before each stream's segment; None: zeros.
        lengths: int32 [S], the rows of each stream that count; None: all.

    Source: ``dynadapt.ops.short_convolution``.
    """
    slots = torch.zeros(1, dtype=torch.int32, device=x.device) if slots is None else slots
    return _short_convolution(x, weight, state, slots, lengths)
