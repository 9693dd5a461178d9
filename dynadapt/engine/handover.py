"""What enters one layer, handed from one pass of a step to another: layers below it are run once where they are the same in both."""

from __future__ import annotations

import torch


class Handover:
    """The residual and what is still to be added to it, by stream, where ``layer`` begins.

    Args:
        width: most inputs of a stream in a pass, context included.
        apart: streams of the receiving pass lie so far apart in the giving one.
    """

    def __init__(self, layer: int, streams: int, width: int, hidden: int, dtype: torch.dtype, device, apart: int = 1):
        self.layer, self.apart = layer, apart
        self.stores = [torch.zeros(streams, width, hidden, dtype=dtype, device=device) for _ in range(2)]

    def keep(self, batch, *tensors: torch.Tensor) -> None:
        """[N, H] each, of a pass's rows."""
        rows, width = batch.inputs.shape
        for store, tensor in zip(self.stores, tensors):
            store[:, :width].index_copy_(0, batch.memory_slots.long(), tensor.view(rows, width, -1))

    def take(self, batch, workspace) -> list[torch.Tensor]:
        """Those of a pass's rows, [N, H] each."""
        rows, width = batch.inputs.shape
        slots = batch.memory_slots.long() * self.apart
        held = [workspace(("handed over", i), rows, width, store.shape[2]) for i, store in enumerate(self.stores)]
        return [torch.index_select(s[:, :width], 0, slots, out=t).view(rows * width, -1) for s, t in zip(self.stores, held)]
