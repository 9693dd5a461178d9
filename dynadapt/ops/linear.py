"""Linear layer with a per-stream low-rank adapter.

    y_p = x W_p^T + b_p + scale (x A_{s,p}^T) Bt_{s,p}          p = 0..P-1, outputs concatenated

``parts`` are P weights that read the same input (q, k, v; gate, up). W is frozen here; A and Bt belong
to the stream that a row belongs to: of N = S T rows, rows i T .. (i+1) T - 1 are stream i, whose adapter
sits in slot ``slots[i]``. Part p owns rows p R .. (p+1) R - 1 of A [slots, P R, K] and its own columns of
Bt [slots, R, O]; Bt is the transpose of LoRA's B, so that both products stream it row by row.

Where parts differ, ``scale`` is a list of (rank, scale), one a part; R is then the largest rank. A holds the parts' rows one behind
the other, [slots, sum R_p, K], and u and dU have as many columns; of Bt a part has the upper R_p rows of its columns, and those
below them are not read. A part of rank 0 has no adapter, and costs what one without costs.

Where slots differ, too, ``scale`` is a ``SlotAdapters``, and A and Bt are flat buffers in which it says where each slot's lie
(ops/slot_adapters.py).

``parts`` may be one ``Float8Weights`` that holds them all, or each an ``Int8Matrix``; the base product is then the quantised one
(ops/float8.py, ops/int8.py). Native ones may be kept in a file's blocks of integers (ops/quants.py): the product is the one with
their values.

Source: Hu et al. 2021, LoRA (arXiv 2106.09685), eq. 3; scale = alpha / R (Kalajdzievski 2023, rsLoRA, arXiv 2312.03732:
alpha / sqrt(R)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .float8 import Float8Weights, product
from .slot_adapters import SlotAdapters


def part_sizes(parts) -> tuple[int, ...]:
    """Outputs of each part."""
    return parts.part_sizes if isinstance(parts, Float8Weights) else tuple(part.shape[0] for part in parts)


def _inputs(parts) -> int:
    """Columns of x."""
    return parts.q.shape[1] if isinstance(parts, Float8Weights) else parts[0].shape[1]


def _columns(parts):
    start = 0
    for size in part_sizes(parts):
        yield start, start + size
        start += size


def each_part(scale, sizes: Sequence[int], rank: int) -> Iterator[tuple[slice, slice, int, float]]:
    """(rows of A, columns of y, rank, scale) of each part; ``rank`` is Bt's, which all have where ``scale`` is one number.

    Raises:
        ValueError: pairs that are not one for each part.
    """
    pairs = scale if isinstance(scale, (list, tuple)) else [(rank, scale)] * len(sizes)
    if len(pairs) != len(sizes):
        raise ValueError(f"scale has {len(pairs)} pairs, accepted is one for each of {len(sizes)} parts")
    row = column = 0
    for (own, factor), size in zip(pairs, sizes):
        yield slice(row, row + own), slice(column, column + size), own, factor
        row, column = row + own, column + size


def _ranks(rank: int | Sequence[int], part_sizes) -> list[int]:
    return [rank] * len(part_sizes) if isinstance(rank, int) else list(rank)


def by_stream(t: torch.Tensor, streams: int) -> torch.Tensor:
    """t [S T, width] as [S, T, width]."""
    return t.reshape(streams, t.shape[0] // streams, t.shape[1])


def slot_by_slot(rows: int, slots: torch.Tensor) -> Iterator[tuple[slice, int]]:
    """(its rows of a call, slot) of each stream."""
    each = rows // len(slots)
    for i, slot in enumerate(slots.tolist()):
        yield slice(i * each, (i + 1) * each), slot


def linear_forward(x, parts, bias, A, Bt, slots, scale, u, y) -> None:
    """y [N, O] and u = x A^T [N, P R] from x [N, K]; bias [O] or None; A is None: no adapter."""
    if isinstance(scale, SlotAdapters):
        for rows, slot in slot_by_slot(len(x), slots):
            width = sum(scale.ranks(slot))
            a, bt = scale.views(slot, A, Bt, x.shape[1], y.shape[1]) if width else (None, None)
            linear_forward(x[rows], parts, bias, a, bt, slots.new_zeros(1), list(scale.pairs[slot]), u[rows, :width], y[rows])
        return
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
    for rows, columns, own, factor in each_part(scale, part_sizes(parts), rank):
        if own:
            low_rank = torch.bmm(us[:, :, rows], b[:, :own, columns])
            y[:, columns] += factor * low_rank.reshape(len(y), -1)


def linear_backward(dy, parts, A, Bt, slots, scale, dU, dx) -> None:
    """dU_p = scale dy_p Bt_p^T [N, P R]; dx = dy W + dU A [N, K]; dx None: nothing below learns."""
    if isinstance(scale, SlotAdapters):
        for rows, slot in slot_by_slot(len(dy), slots):
            width = sum(scale.ranks(slot))
            a, bt = scale.views(slot, A, Bt, _inputs(parts), dy.shape[1]) if width else (None, None)
            back = None if dx is None else dx[rows]
            linear_backward(dy[rows], parts, a, bt, slots.new_zeros(1), list(scale.pairs[slot]), dU[rows, :width], back)
        return
    if A is not None:
        streams, rank = len(slots), Bt.shape[1]
        index = slots.long()
        dys, b = by_stream(dy, streams), Bt[index]
        for rows, columns, own, factor in each_part(scale, part_sizes(parts), rank):
            if own:
                d = torch.bmm(dys[:, :, columns], b[:, :own, columns].transpose(1, 2))
                dU[:, rows] = factor * d.reshape(-1, own)
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


def low_rank_size(k: int, part_sizes, rank: int | Sequence[int]) -> tuple[int, int]:
    """(elements of A, those of Bt that are used): K sum R_p, sum R_p O_p. ``rank``: every part's, or each one's."""
    ranks = _ranks(rank, part_sizes)
    return k * sum(ranks), sum(r * size for r, size in zip(ranks, part_sizes))


def forward_flops(rows: int, k: int, part_sizes, rank: int | Sequence[int] = 0) -> int:
    """Multiply-adds count two. Base 2 N K O; adapter 2 N K sum R_p + 2 N sum R_p O_p. ``rank``: every part's, or each one's."""
    return 2 * rows * (k * sum(part_sizes) + sum(low_rank_size(k, part_sizes, rank)))


def backward_flops(rows: int, k: int, part_sizes, rank: int | Sequence[int] = 0, need_dx: bool = True) -> int:
    """d-input: 2 N sum R_p O_p for dU, then 2 N K O + 2 N K sum R_p unless nothing below learns."""
    a, b = low_rank_size(k, part_sizes, rank)
    return 2 * rows * (b + (k * sum(part_sizes) + a if need_dx else 0))
