"""Causal attention over [sinks; memory; segment] (ops/attention.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import attention as op_attention

from .registry import autograd, contiguous, functional, kernel, like, wide


def _rows_and_memory(qkv, mem_k, slots, window):
    """(streams, segment, memory): a memory counts with its capacity, the most that any fill can hold, as far as a window sees it."""
    return slots[0], qkv[0] // slots[0], 0 if mem_k is None else op_attention.seen_memory(mem_k[1], window)


def _forward_flops(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window=None, softcap=None):
    streams, segment, memory = _rows_and_memory(qkv, mem_k, slots, window)
    return streams * op_attention.forward_flops(segment, memory, hq, d)


def _backward_flops(dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window=None, softcap=None):
    streams, segment, memory = _rows_and_memory(qkv, mem_k, slots, window)
    return streams * sum(op_attention.backward_flops(segment, memory, hq, d))


@functional(
    "attention(Tensor qkv, Tensor? mem_k, Tensor? mem_v, Tensor? mem_len, Tensor slots, Tensor? cos, Tensor? sin, "
    "int hq, int hkv, int d, float scale, int? window=None, float? softcap=None) -> (Tensor out, Tensor lse)",
    _forward_flops,
)
def _attention(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window=None, softcap=None):
    streams = slots.shape[0]
    out, lse = qkv.new_empty(qkv.shape[0], hq * d), wide(qkv, streams, hq, qkv.shape[0] // streams)
    yield out, lse
    tensors = contiguous(qkv, mem_k, mem_v, mem_len, slots, cos, sin)
    kernel("attention_forward", qkv)(*tensors, hq, hkv, d, scale, out, lse, window, softcap)


@functional(
    "attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor? mem_k, Tensor? mem_v, Tensor? mem_len, "
    "Tensor slots, Tensor? cos, Tensor? sin, int hq, int hkv, int d, float scale, int? window=None, float? softcap=None) -> Tensor",
    _backward_flops,
    gradient=True,
)
def _attention_backward(dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window=None, softcap=None):
    dqkv = like(qkv)
    yield dqkv
    tensors = contiguous(dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin)
    kernel("attention_backward", qkv)(*tensors, hq, hkv, d, scale, dqkv, window, softcap)


def _setup(ctx, inputs, output):
    qkv, mem_k, mem_v, mem_len, slots, cos, sin, *ctx.sizes = inputs
    ctx.save_for_backward(qkv, *output, mem_k, mem_v, mem_len, slots, cos, sin)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, dout, _):
    qkv, out, lse, *rest = ctx.saved_tensors
    return _attention_backward(dout, qkv, out, lse, *rest, *ctx.sizes), *[None] * 12


autograd(_attention, _setup, _gradient)


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
) -> torch.Tensor:
    """out [N, hq d] of qkv [N, (hq + 2 hkv) d]: causal within each stream's segment, full over its memory unless a window ends before.

    Differentiable in qkv; by definition no gradient flows into memory (Dai et al. 2019, arXiv 1901.02860).

    Args:
        qkv: queries, keys (before rotation) and values side by side; N = S T rows.
        slots: int32 [S], the memory slot of each stream; None: one stream.
        memory: (mem_k, mem_v [slots, C, hkv d], mem_len int32 [slots]) or None.
        cos, sin: float32 [P, d/2] by position in the window, P >= C + T; None: no rotation.
        scale: of the scores, d^-0.5 unless given.
        window: a query sees its own position and the window - 1 before it, of memory and segment; None: all.
        softcap: scores are softcap tanh(score / softcap) before the softmax (Gemma 2); None: as they are.

    Source: ``dynadapt.ops.attention``.
    """
    slots = torch.zeros(1, dtype=torch.int32, device=qkv.device) if slots is None else slots
    mem_k, mem_v, mem_len = (None, None, None) if memory is None else memory
    scale = d**-0.5 if scale is None else scale
    return _attention(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap)[0]
