"""Segment memory takes in a segment, in place (ops/memory.py)."""

from __future__ import annotations

import torch

from .registry import kernel, mutating


@mutating("memory_advance(Tensor source, int[] columns, Tensor(a!)[] stores, Tensor mem_len, Tensor slots, Tensor counts, int sinks) -> ()")
def memory_advance(source, columns, stores, mem_len, slots, counts, sinks):
    kernel("memory_advance", source)(source, list(columns), list(stores), mem_len, slots, counts, sinks)


@mutating("memory_fill(Tensor(a!) mem_len, Tensor slots, Tensor counts, int capacity) -> ()")
def memory_fill(mem_len, slots, counts, capacity):
    _fill(mem_len)(mem_len, slots, counts, capacity)


def _fill(mem_len):
    """It has no activations: float32 stands for any dtype."""
    return kernel("memory_fill", mem_len.new_empty(0, dtype=torch.float32))
