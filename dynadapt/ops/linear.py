"""Linear layer with a per-stream low-rank adapter.

    y_p = x W_p^T + b_p + scale (x A_{s,p}^T) Bt_{s,p}          p = 0..P-1, outputs concatenated

``parts`` are P weights that read the same input (q, k, v; gate, up). W is frozen here; A and Bt belong
to the stream that a row belongs to: of N = S T rows, rows i T .. (i+1) T - 1 are stream i, whose adapter
sits in slot ``slots[i]``. Part p owns rows p R .. (p+1) R - 1 of A [slots, P R, K] and its own columns of
Bt [slots, R, O]; Bt is the transpose of LoRA's B, so that both products stream it row by row.

``parts`` may be one ``Float8Weights`` that holds them all, or each an ``Int8Matrix``; the base product is then the quantised one
(ops/float8.py, ops/int8.py). Native ones may be kept in a file's blocks of integers (ops/quants.py): the product is the one with
their values.

Source: Hu et al. 2021, LoRA (arXiv 2106.09685), eq. 3; scale = alpha / R.
"""

from __future__ import annotations

import torch

from .float8 import Float8Weights, product


def part_sizes(parts) -> tuple[int, ...]:
    """Outputs of each part."""
    return parts.part_sizes if isinstance(parts, Float8Weights) else tuple(part.shape[0] for part in parts)


def _columns(parts):
    start = 0
    for size in part_sizes(parts):
        yield start, start + size
        start += size


def by_stream(t: torch.Tensor, streams: int) -> torch.Tensor:
    """t [S T, width] as [S, T, width]."""
    return t.reshape(streams, t.shape[0] // streams, t.shape[1])


def linear_forward(x, parts, bias, A, Bt, slots, scale, u, y) -> None:
    """y [N, O] and u = x A^T [N, P R] from x [N, K]; bias [O] or None; A is None: no adapter."""
    if isinstance(parts, Float8Weights):
        y.copy_(product(x, parts.q, parts.scale))
    else:
        for part, (lo, hi) in zip(parts, _columns(parts)):
            y[:, lo:hi] = part.times(x)
    if bias is not None:
        y += bias
    if A is None:
        return
    streams, rank = len(slots), Bt.shape[1]
    index = slots.long()
    u.copy_(torch.bmm(by_stream(x, streams), A[index].transpose(1, 2)).reshape(u.shape))
    us, b = by_stream(u, streams), Bt[index]
    for p, (lo, hi) in enumerate(_columns(parts)):
        low_rank = torch.bmm(us[:, :, p * rank : (p + 1) * rank], b[:, :, lo:hi])
        y[:, lo:hi] += scale * low_rank.reshape(-1, hi - lo)


def linear_backward(dy, parts, A, Bt, slots, scale, dU, dx) -> None:
    """dU_p = scale dy_p Bt_p^T [N, P R]; dx = dy W + dU A [N, K]; dx None: nothing below learns."""
    if A is not None:
        streams, rank = len(slots), Bt.shape[1]
        index = slots.long()
        dys, b = by_stream(dy, streams), Bt[index]
        for p, (lo, hi) in enumerate(_columns(parts)):
            d = torch.bmm(dys[:, :, lo:hi], b[:, :, lo:hi].transpose(1, 2))
            dU[:, p * rank : (p + 1) * rank] = scale * d.reshape(-1, rank)
    if dx is None:
        return
    if isinstance(parts, Float8Weights):
        dx.copy_(product(dy, parts.q_transposed, parts.scale_transposed))
    else:
        dx.zero_()
        for part, (lo, hi) in zip(parts, _columns(parts)):
            dx += part.times_transposed(dy[:, lo:hi])
    if A is not None:
        dx += torch.bmm(by_stream(dU, streams), A[index]).reshape(dx.shape)


def forward_flops(rows: int, k: int, part_sizes, rank: int = 0) -> int:
    """Multiply-adds count two. Base 2 N K O; adapter 2 N K P R + 2 N R O."""
    out = sum(part_sizes)
    return 2 * rows * (k * out + k * len(part_sizes) * rank + rank * out)


def backward_flops(rows: int, k: int, part_sizes, rank: int = 0, need_dx: bool = True) -> int:
    """d-input: 2 N R O for dU, then 2 N K O + 2 N P R K unless nothing below learns."""
    out = sum(part_sizes)
    dx = k * out + len(part_sizes) * rank * k if need_dx else 0
    return 2 * rows * (rank * out + dx)
