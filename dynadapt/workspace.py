"""Buffers that live as long as the engine, so that a step allocates nothing after the first of its shape."""

from __future__ import annotations

import math

import torch


class Workspace:
    """``workspace(name, *shape)`` is the buffer of that name, grown when a larger shape is asked for; contents are undefined.

    With ``pinned`` a buffer that was outgrown is kept all the same, because captured graphs hold its address.
    """

    def __init__(self, dtype: torch.dtype, device="cpu", pinned: bool = False):
        self.dtype, self.device, self.pinned = dtype, torch.device(device), pinned
        self.buffers: dict[tuple, torch.Tensor] = {}
        self.outgrown: list[torch.Tensor] = []

    def __call__(self, name, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        dtype = dtype or self.dtype
        count = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < count:
            if buffer is not None and self.pinned:
                self.outgrown.append(buffer)
            buffer = self.buffers[name, dtype] = torch.empty(count, dtype=dtype, device=self.device)
        return buffer[:count].view(shape)

    @property
    def nbytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in [*self.buffers.values(), *self.outgrown])
