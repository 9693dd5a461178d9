"""Causal depthwise convolution over a few tokens, then SiLU: what mixes neighbours ahead of the gated delta rule
(Yang et al. 2024, arXiv 2412.06464; the convolution of Gu and Dao 2023, "Mamba", arXiv 2312.00752).

    z[t, c] = sum_w weight[c, w] x[t - W + 1 + w, c]        y = z sigmoid(z)

The W - 1 rows before a segment are what a stream remembers: they come in as the slot's, those before the next segment go out as
``final``, and no gradient flows into them.
"""

from __future__ import annotations

import torch

from .precision import widen


def _streams(x, weight, state, slots, lengths):
    """(its number, its rows that count, the rows behind them, its inputs [W - 1 + length, C] from its memory on) of each stream."""
    segment, before = x.shape[0] // len(slots), weight.shape[1] - 1
    for i, slot in enumerate(slots.tolist()):
        first, length = i * segment, segment if lengths is None else int(lengths[i])
        rows = slice(first, first + length)
        memory = x.new_zeros(before, x.shape[1]) if state is None else state[slot]
        yield i, rows, slice(first + length, first + segment), torch.cat([memory, x[rows]])


def _taps(inputs, width):
    """The row of ``inputs`` [W - 1 + T, C] that each weight is multiplied with: W views [T, C]."""
    return [inputs[w : len(inputs) - width + 1 + w] for w in range(width)]


def _sums(inputs, weight):
    return sum(widen(tap) * widen(weight)[:, w] for w, tap in enumerate(_taps(inputs, weight.shape[1])))


def short_convolution_forward(x, weight, state, slots, lengths, y, final) -> None:
    """y [N, C] and final [S, W - 1, C] from x [N, C], N = S T rows, and weight [C, W].

    state [slots, W - 1, C] or None: zeros; slots int32 [S]; lengths int32 [S] or None: T each. Rows from a stream's length on do
    not count: their y is 0, and ``final`` (or None) has the last W - 1 rows before them. All but slots and lengths have x's dtype.
    """
    for i, rows, rest, inputs in _streams(x, weight, state, slots, lengths):
        z = _sums(inputs, weight)
        y[rows] = (z * torch.sigmoid(z)).to(y.dtype)
        y[rest] = 0
        if final is not None:
            final[i] = inputs[len(inputs) - weight.shape[1] + 1 :]


def short_convolution_backward(dy, x, weight, state, slots, lengths, dx, dweight) -> None:
    """dx like x, 0 in rows that do not count; dweight float32 [C, W] is added to when given. The sums are recomputed."""
    width = weight.shape[1]
    for _, rows, rest, inputs in _streams(x, weight, state, slots, lengths):
        z = _sums(inputs, weight)
        sigma = torch.sigmoid(z)
        dz = widen(dy[rows]) * sigma * (1 + z * (1 - sigma))
        dinputs = torch.zeros_like(inputs, dtype=dz.dtype)
        for w, tap in enumerate(_taps(dinputs, width)):
            tap += dz * widen(weight)[:, w]
        dx[rows] = dinputs[width - 1 :].to(dx.dtype)
        dx[rest] = 0
        if dweight is not None:
            for w, tap in enumerate(_taps(inputs, width)):
                dweight[:, w] += (dz * widen(tap)).sum(0)
