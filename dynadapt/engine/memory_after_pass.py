"""The segment memory behind a pass of the decoder: the segment enters it, and what attending to it cost is counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynadapt.ops import attention
from dynadapt.ops.profiler_ranges import ranged

from .batch import Batch


@ranged("memory")
def advance_memory(decoder, batch: Batch, counts: Sequence[int] | torch.Tensor) -> None:
    """The first ``counts[s]`` rows of each stream's segment enter its memory, detached.

    ``counts``: numbers, or int32 [S] on the device, which then does it without the host looking (``MemoryState.count`` follows).
    """
    d, c, m = decoder, decoder.config, decoder.memory
    if m is None:
        return
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    if m.input_stack is not None:
        source, columns, stores = d.ws("inputs of all layers", d.attention_count, batch.rows, c.hidden_size), [0], [m.input_stack]
    else:
        name = "normed" if c.qk_norm else "raw"
        source = d.ws(f"{name} qkv of all layers", d.attention_count, batch.rows, q + 2 * kv)
        columns, stores = [q, q + kv], [m.key_stack, m.value_stack]
    if isinstance(counts, torch.Tensor):
        if len(source):  # else no layer remembers, and the fill alone is counted
            d.ops.memory_advance(source, tuple(columns), stores, m.length, batch.memory_slots, counts, m.memory.sinks)
        d.ops.memory_fill(m.length, batch.memory_slots, counts, m.memory.capacity)
    else:
        m.advance(source, columns, stores, batch.streams, counts)
    if d.delta is not None:
        m.delta.advance(batch.memory_slots, d.delta.states(len(batch.streams)), d.delta.rows(len(batch.streams)))


def count_memory(decoder, segment: int, lengths: Sequence[int]) -> None:
    """Adds what attending to memories of these lengths cost in the last pass (the ops of the pass count the segment alone)."""
    d, c = decoder, decoder.config
    back = d.attention_count - d.attended_back  # the lowest of these layers that backward reached
    for m in lengths:
        for place, i in enumerate(d.attention_layers):
            flops = attention.memory_flops(segment, attention.seen_memory(m, c.window(i)), c.heads, c.head_dim)
            d.ledger.add("forward", flops["forward"])
            if place >= back:
                d.ledger.add("backward", flops["backward"])
                d.ledger.add("recompute", flops["recompute"])
