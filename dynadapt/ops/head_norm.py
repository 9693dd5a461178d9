"""RMSNorm of queries and keys before rotation; values pass through.

y_p = x_p / sqrt(mean(x_p^2) + eps) * weight        over the elements of a piece p of the row

Weights of [d] normalise every head by itself (Qwen3's q_norm and k_norm). Weights of [hq d] and [hkv d] take all query heads of a row for
one piece and all its key heads for another (OLMo 2, arXiv 2501.00656); the number of q_weight's elements says which.
"""

from __future__ import annotations

import torch


def normed_pieces(hq: int, hkv: int, d: int, q_weight) -> int:
    """How many pieces of a row are normalised, each by itself: its query and key heads, or two."""
    return hq + hkv if q_weight.shape[0] == d else 2


def _queries_and_keys(hq, hkv, d, q_weight, k_weight):
    """(columns of a row, weight, places of their pieces in rstd) of its queries and of its keys."""
    q, k = hq * d, hkv * d
    pieces = q // q_weight.shape[0]
    return ((slice(0, q), q_weight, slice(0, pieces)), (slice(q, q + k), k_weight, slice(pieces, pieces + k // k_weight.shape[0])))


def _pieces(rows, columns, weight, dtype):
    """[N, pieces, width]"""
    return rows[:, columns].unflatten(1, (-1, weight.shape[0])).to(dtype)


def head_norm_forward(qkv, q_weight, k_weight, eps, hq, hkv, d, out, rstd) -> None:
    """qkv, out [N, (hq + 2 hkv) d]; q_weight, k_weight [d], rstd [N, hq + hkv] for backward; or q_weight [hq d], k_weight [hkv d],
    rstd [N, 2]."""
    for columns, weight, places in _queries_and_keys(hq, hkv, d, q_weight, k_weight):
        x = _pieces(qkv, columns, weight, rstd.dtype)
        rstd[:, places] = torch.rsqrt(x.square().mean(2) + eps)
        out[:, columns] = (x * rstd[:, places, None] * weight.to(x.dtype)).flatten(1).to(out.dtype)
    out[:, (hq + hkv) * d :] = qkv[:, (hq + hkv) * d :]


def head_norm_backward(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq_weight, dk_weight) -> None:
    """dqkv like qkv; dq_weight, dk_weight, like the weights, are added to when given."""
    for (columns, weight, places), dweight in zip(_queries_and_keys(hq, hkv, d, q_weight, k_weight), (dq_weight, dk_weight)):
        g = _pieces(dout, columns, weight, rstd.dtype)
        scale = rstd[:, places, None]
        xhat = _pieces(qkv, columns, weight, rstd.dtype) * scale
        gw = g * weight.to(g.dtype)
        dx = (gw - xhat * (gw * xhat).mean(2, keepdim=True)) * scale
        dqkv[:, columns] = dx.flatten(1).to(dqkv.dtype)
        if dweight is not None:
            dweight += (g * xhat).sum((0, 1))
    dqkv[:, (hq + hkv) * d :] = dout[:, (hq + hkv) * d :]
