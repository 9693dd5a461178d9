"""Token embedding, with learned positions where the family has them, and adapters on it.

out_n = table[token_n] (+ position_table[position_n])

An adapter on the embedding is PEFT's: the table's transpose [H, V] is the weight that B A is added to, so that a token reads its column
of A. Rows i N / S.. of a call belong to the stream in ``slots[i]`` (as in linear.py); A is [slots, R, V], Bt [slots, R, H].

    out_n += scale A_s[:, token_n]^T Bt_s

Source: Hu et al. 2021, LoRA (arXiv 2106.09685), eq. 3, of a weight whose input is a token's unit vector.
"""

from __future__ import annotations

import torch

from .linear import slot_by_slot


def embedding_forward(tokens, table, position_table, positions, out) -> None:
    """out [N, H]; tokens, positions int64 [N]; table [V, H]; position_table [P, H] or None."""
    rows = table[tokens]
    out.copy_(rows if position_table is None else rows + position_table[positions])


def embedding_backward(tokens, dout, dtable) -> None:
    """dtable [V, H] (float32 or wider) += the sum of dout over the places where each token stands."""
    dtable.index_add_(0, tokens, dout.to(dtable.dtype))


def adapted_embedding_forward(tokens, A, Bt, slots, scale, out) -> None:
    """out [N, H] += scale A_s[:, tokens]^T Bt_s; slots int32 [S], S a divisor of N."""
    for rows, slot in slot_by_slot(len(tokens), slots):
        out[rows] += scale * (A[slot][:, tokens[rows]].t() @ Bt[slot])


def adapted_embedding_backward(tokens, dout, A, Bt, slots, scale, dA, dBt, accumulate) -> None:
    """dA [slots, R, V], dBt [slots, R, H] (float32 or wider) of the call's slots, which are distinct, from dout [N, H].

    dA_s[:, v] = scale Bt_s sum of dout over the stream's places of v; dBt_s = scale A_s[:, tokens] dout. Other slots stay.
    """
    for rows, slot in slot_by_slot(len(tokens), slots):
        own = tokens[rows]
        a = torch.zeros_like(dA[slot]).index_add_(1, own, scale * (Bt[slot] @ dout[rows].t()).to(dA.dtype))
        b = scale * (A[slot][:, own] @ dout[rows]).to(dBt.dtype)
        dA[slot] = dA[slot] + a if accumulate else a
        dBt[slot] = dBt[slot] + b if accumulate else b


def adapted_forward_flops(rows: int, hidden: int, rank: int) -> int:
    """2 N R H; reading a column of A is no arithmetic."""
    return 2 * rows * rank * hidden


def adapted_backward_flops(rows: int, hidden: int, rank: int) -> int:
    """2 N R H for dA, as many for dBt."""
    return 4 * rows * rank * hidden
