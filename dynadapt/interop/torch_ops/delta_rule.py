"""The gated delta rule (ops/delta_rule.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import delta_rule as op_delta_rule

from .registry import autograd, contiguous, functional, kernel, like, wide


def _forward_flops(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps):
    return op_delta_rule.forward_flops(qkv[0], hv, dk, dv)


def _backward_flops(dout, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps):
    return sum(op_delta_rule.backward_flops(qkv[0], hv, dk, dv))


@functional(
    "delta_rule(Tensor qkv, Tensor g, Tensor beta, Tensor? state, Tensor slots, Tensor? lengths, int hk, int hv, int dk, int dv, "
    "float scale, float eps) -> (Tensor out, Tensor final)",
    _forward_flops,
)
def _delta_rule(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps):
    out, final = qkv.new_empty(qkv.shape[0], hv * dv), wide(qkv, slots.shape[0], hv, dk, dv)
    yield out, final
    tensors = contiguous(qkv, g, beta, state, slots, lengths)
    kernel("delta_rule_forward", qkv)(*tensors, hk, hv, dk, dv, scale, eps, out, final)


@functional(
    "delta_rule_backward(Tensor dout, Tensor qkv, Tensor g, Tensor beta, Tensor? state, Tensor slots, Tensor? lengths, int hk, int hv, "
    "int dk, int dv, float scale, float eps) -> (Tensor dqkv, Tensor dg, Tensor dbeta)",
    _backward_flops,
    gradient=True,
)
def _delta_rule_backward(dout, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps):
    dqkv, dg, dbeta = like(qkv), like(g), like(beta)
    yield dqkv, dg, dbeta
    tensors = contiguous(dout, qkv, g, beta, state, slots, lengths)
    kernel("delta_rule_backward", qkv)(*tensors, hk, hv, dk, dv, scale, eps, dqkv, dg, dbeta)


def _setup(ctx, inputs, output):
    tensors, ctx.sizes = inputs[:6], inputs[6:]
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, dout, _):
    return *_delta_rule_backward(dout, *ctx.saved_tensors, *ctx.sizes), *[None] * 9


autograd(_delta_rule, _setup, _gradient)


def delta_rule(
    qkv, g, beta, hk: int, hv: int, dk: int, dv: int, *, slots=None, state=None, lengths=None, scale: float | None = None, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [N, hv dv], final [S, hv, dk, dv]) of the gated delta rule over each stream's segment.

    Differentiable in qkv, g and beta through ``out``; by definition no gradient flows through states.

    Args:
        qkv: queries, keys and values [N, 2 hk dk + hv dv] side by side; N = S T rows.
        g, beta: float32 [N, hv], the logarithm of the decay (at most 0) and the rate of the write.
        slots: int32 [S], the slot of each stream's state; None: one stream.
        state: float32 [slots, hv, dk, dv], where streams go on from; None: zeros.
        lengths: int32 [S], the rows of each stream that count; None: all.
        scale: of the queries, dk^-0.5 unless given.
        eps: under the root of the lengths that queries and keys are divided by.

    Source: ``dynadapt.ops.delta_rule``.
    """
    slots = torch.zeros(1, dtype=torch.int32, device=qkv.device) if slots is None else slots
    return _delta_rule(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, dk**-0.5 if scale is None else scale, eps)
