"""Cases of a memory that takes in a segment."""

from __future__ import annotations

import torch

from .base import Draw, Op, OpCase

MEMORY_ADVANCE = Op("memory_advance", "stores", changed="stores", streams="slots counts")
MEMORY_FILL = Op("memory_fill", "mem_len", changed="mem_len", streams="slots counts")


def memory_advance(d: Draw, layers: int, streams: int, segment: int, capacity: int, columns, width: int, sinks: int = 0, label: str = ""):
    """A full memory takes in a segment, all layers at once: ``width`` columns of the source from each of ``columns``."""
    n = streams * segment
    full, counts = (torch.full((d.slot_count(streams),), m, dtype=torch.int32, device=d.device) for m in (capacity, segment))
    arguments = {
        "source": d.acts(layers, n, max(columns) + width),
        "columns": tuple(columns),
        "stores": [d.acts(layers, d.slot_count(streams), capacity, width) for _ in columns],
        "mem_len": full,
        "slots": d.slots(streams),
        "counts": counts[:streams].clone(),
        "sinks": sinks,
    }
    moved = 2 * 2 * len(columns) * layers * streams * min(capacity, segment) * width
    return OpCase(MEMORY_ADVANCE, d.dtype, arguments, label, moved)


def memory_fill(d: Draw, streams: int, segment: int, capacity: int, label: str = "") -> OpCase:
    """Memories that are nearly full take in a segment: what is filled is counted, none beyond the capacity."""
    arguments = {
        "mem_len": torch.full((d.slot_count(streams),), max(0, capacity - 1), dtype=torch.int32, device=d.device),
        "slots": d.slots(streams),
        "counts": torch.full((streams,), segment, dtype=torch.int32, device=d.device),
        "capacity": capacity,
    }
    return OpCase(MEMORY_FILL, d.dtype, arguments, label, 4 * 4 * streams)
