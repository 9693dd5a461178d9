"""The gates of the gated delta rule (ops/delta_gates.py)."""

from __future__ import annotations

import torch

from .registry import autograd, contiguous, functional, kernel, like, rows, wide, wide_zeros


@functional("delta_gates(Tensor a, Tensor b, Tensor a_log, Tensor dt_bias) -> (Tensor g, Tensor beta)")
def _delta_gates(a, b, a_log, dt_bias):
    g, beta = wide(a, *a.shape), wide(a, *a.shape)
    yield g, beta
    kernel("delta_gates_forward", a)(rows(a), rows(b), *contiguous(a_log, dt_bias), g, beta)


@functional(
    "delta_gates_backward(Tensor dg, Tensor dbeta, Tensor a, Tensor b, Tensor a_log, Tensor dt_bias) -> "
    "(Tensor da, Tensor db, Tensor da_log, Tensor ddt_bias)",
    gradient=True,
)
def _delta_gates_backward(dg, dbeta, a, b, a_log, dt_bias):
    da, db, da_log, ddt_bias = like(a), like(b), wide_zeros(a, a.shape[1]), wide_zeros(a, a.shape[1])
    yield da, db, da_log, ddt_bias
    dg, dbeta, a_log, dt_bias = contiguous(dg, dbeta, a_log, dt_bias)
    kernel("delta_gates_backward", a)(dg, dbeta, rows(a), rows(b), a_log, dt_bias, da, db, da_log, ddt_bias)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradient(ctx, dg, dbeta):
    return _delta_gates_backward(dg, dbeta, *ctx.saved_tensors)


autograd(_delta_gates, _setup, _gradient)


def delta_gates(a, b, a_log, dt_bias) -> tuple[torch.Tensor, torch.Tensor]:
    """(g, beta), float32 [N, hv]: the decay's logarithm -exp(a_log) softplus(a + dt_bias) and the rate sigmoid(b), as ``delta_rule``
    takes them, from a, b [N, hv] and a_log, dt_bias float32 [hv].

    Source: ``dynadapt.ops.delta_gates``.
    """
    return _delta_gates(a, b, a_log, dt_bias)
