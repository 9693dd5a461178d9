"""Token embedding (ops/embedding.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import embedding as op_embedding

from .registry import autograd, contiguous, functional, kernel, wide_zeros


@functional("embedding(Tensor tokens, Tensor table, Tensor? position_table, Tensor? positions) -> Tensor")
def _embedding(tokens, table, position_table=None, positions=None):
    out = table.new_empty(tokens.shape[0], table.shape[1])
    yield out
    tokens, table, position_table, positions = contiguous(tokens, table, position_table, positions)
    kernel("embedding_forward", table)(tokens, table, position_table, positions, out)


@functional("embedding_backward(Tensor tokens, Tensor dout, SymInt rows) -> Tensor", gradient=True)
def _embedding_backward(tokens, dout, rows):
    dtable = wide_zeros(dout, rows, dout.shape[1])
    yield dtable
    tokens, dout = contiguous(tokens, dout)
    kernel("embedding_backward", dout)(tokens, dout, dtable)


@functional(
    "adapted_embedding(Tensor tokens, Tensor A, Tensor Bt, Tensor slots, float scale) -> Tensor",
    lambda tokens, A, Bt, slots, scale, **_: op_embedding.adapted_forward_flops(tokens[0], Bt[2], Bt[1]),
    gradient=True,
)
def _adapted_embedding(tokens, A, Bt, slots, scale):
    out = Bt.new_zeros(tokens.shape[0], Bt.shape[2])
    yield out
    tokens, A, Bt, slots = contiguous(tokens, A, Bt, slots)
    kernel("adapted_embedding_forward", Bt)(tokens, A, Bt, slots, scale, out)


@functional(
    "adapted_embedding_backward(Tensor tokens, Tensor dout, Tensor A, Tensor Bt, Tensor slots, float scale) -> (Tensor dA, Tensor dBt)",
    lambda tokens, dout, A, Bt, slots, scale, **_: op_embedding.adapted_backward_flops(tokens[0], Bt[2], Bt[1]),
    gradient=True,
)
def _adapted_embedding_backward(tokens, dout, A, Bt, slots, scale):
    dA, dBt = wide_zeros(dout, *A.shape), wide_zeros(dout, *Bt.shape)
    yield dA, dBt
    tokens, dout, A, Bt, slots = contiguous(tokens, dout, A, Bt, slots)
    kernel("adapted_embedding_backward", dout)(tokens, dout, A, Bt, slots, scale, dA, dBt, False)


def _setup(ctx, inputs, output):
    tokens, table, position_table, positions = inputs
    ctx.save_for_backward(tokens, positions)
    ctx.rows = table.shape[0], None if position_table is None else position_table.shape[0]


def _gradient(ctx, dout):
    tokens, positions = ctx.saved_tensors
    _, needs_table, needs_positions, _ = ctx.needs_input_grad
    grads = [
        _embedding_backward(index, dout, rows).to(dout.dtype) if needed else None
        for index, rows, needed in ((tokens, ctx.rows[0], needs_table), (positions, ctx.rows[1], needs_positions))
    ]
    return None, *grads, None


autograd(_embedding, _setup, _gradient)


def embedding(tokens, table, position_table=None, positions=None) -> torch.Tensor:
    """out [..., H] = table[tokens] (+ position_table[positions]); tokens, positions int64 [...], the tables [V, H] and [P, H].

    Source: ``dynadapt.ops.embedding``.
    """
    if (position_table is None) != (positions is None):
        raise ValueError("position_table and positions: expected both or neither")
    places = None if positions is None else positions.expand(tokens.shape).reshape(-1)
    return _embedding(tokens.reshape(-1), table, position_table, places).reshape(*tokens.shape, table.shape[1])
