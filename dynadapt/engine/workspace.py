"""Buffers that live as long as the engine, so that a step allocates nothing after the first of its shape."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch

from dynadapt.ops.dispatch import kernel_module

MOST_VIEWS = 10_000


class Workspace:
    """``workspace(name, *shape)`` is the buffer of that name, as large as the largest shape it was asked for; contents are undefined.

    ``grown`` counts the buffers that gave way to a larger one: what was recorded before it changed holds addresses that are gone.
    """

    def __init__(self, dtype: torch.dtype, device="cpu"):
        self.dtype, self.device, self.grown = dtype, torch.device(device), 0
        self.buffers: dict[tuple, torch.Tensor] = {}
        self.views: dict[tuple, torch.Tensor] = {}  # by (name, shape, dtype): a step asks for the same ones again and again

    def __call__(self, name, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        dtype = dtype or self.dtype
        view = self.views.get((name, shape, dtype))
        if view is None:
            if len(self.views) >= MOST_VIEWS:  # segments of ever new lengths
                self.views.clear()
            view = self.views[name, shape, dtype] = self._view(name, shape, dtype)
        return view

    def _view(self, name, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < count:
            if buffer is not None:
                self.grown += 1
                self.views = {key: view for key, view in self.views.items() if (key[0], key[2]) != (name, dtype)}
                del buffer, self.buffers[name, dtype]  # first: both need not fit into memory
            buffer = self.buffers[name, dtype] = torch.empty(count, dtype=dtype, device=self.device)
        return buffer[:count].view(shape)

    @property
    def nbytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.buffers.values())


class KernelScratch:
    """Scratch memory of the GPU kernels that is one engine's own: they use it inside ``with scratch():``."""

    def __init__(self, backend: str):
        self.kernels = backend == "triton"
        self.drop()

    def drop(self) -> None:
        """Begin anew; what was recorded with it must not be replayed."""
        self.scratch = kernel_module("common").Scratch() if self.kernels else None

    def __call__(self):
        return kernel_module("common").scratch_of(self.scratch) if self.kernels else nullcontext()
