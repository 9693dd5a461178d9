"""Segment memory takes in a segment: all layers' keys and values (or layer inputs) at once.

With F entries in a slot's window and n new rows, the window is the first ``sinks`` rows of [old; new] and the last
C - sinks of them, or all F + n while they fit. This is ``dynadapt.memory.WindowStore.advance`` for every layer, store and
stream in one call. Sources: memory, Dai et al. 2019 (arXiv 1901.02860); sinks, Xiao et al. 2023 (arXiv 2309.17453).
"""

from __future__ import annotations

import torch


def memory_advance(source, columns, stores, mem_len, slots, counts, sinks) -> None:
    """Each stream's first ``counts`` rows of the segment enter its slot's windows, which are changed in place.

    source [L, N, width], N = S T: the segment's rows of every layer; store k takes columns[k] .. columns[k] + W - 1.
    stores: list of [L, slots, C, W], the same shape for all; rows behind the fill are never read.
    mem_len int32 [slots]: fill before the call (``memory_fill`` moves it on). slots int32 [S], all different.
    counts int32 [S], 0 to T: how many rows enter; 0 = the stream rests.
    """
    segment = source.shape[1] // len(slots)
    for i, (slot, count) in enumerate(zip(slots.tolist(), counts.tolist())):
        filled = int(mem_len[slot])
        for column, store in zip(columns, stores):
            capacity, width = store.shape[2:]
            new = source[:, i * segment : i * segment + count, column : column + width]
            window = torch.cat([store[:, slot, :filled], new], 1)
            surplus = max(0, filled + count - capacity)
            store[:, slot, : min(sinks, filled + count)] = window[:, :sinks]
            store[:, slot, sinks : filled + count - surplus] = window[:, sinks + surplus :]


def memory_fill(mem_len, slots, counts, capacity) -> None:
    """mem_len[slots[i]] = min(mem_len[slots[i]] + counts[i], capacity), in place; after ``memory_advance``."""
    index = slots.long()
    mem_len[index] = (mem_len[index] + counts).clamp(max=capacity).to(mem_len.dtype)
