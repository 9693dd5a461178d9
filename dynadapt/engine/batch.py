"""What goes through a decoder's layers together in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Batch:
    """One pass: inputs int64 [S, T]; whose adapter and whose memory each row uses."""

    inputs: torch.Tensor
    adapter_slots: torch.Tensor  # int32 [S], or [1] when all rows share one
    memory_slots: torch.Tensor  # int32 [S]
    streams: tuple[int, ...]  # the memory slots, for the host
    recomputed: float = 0.0  # share of the rows that were scored before (overlapping windows)
    lengths: torch.Tensor | None = None  # int32 [S], with a memory: the rows of each stream that count; None: all

    @property
    def rows(self) -> int:
        return self.inputs.numel()
