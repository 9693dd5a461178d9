"""Numbers on their way from the device to the host, while the device goes on with what follows.

A plain ``.cpu()`` is a copy behind all that was launched: of the scores of one step it also waits for the next, and the device then for the
host. Here the copies are launched behind the step whose numbers they are, into pinned memory, and an event behind them is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class OnTheWay:
    """``tensors`` by name; those on a CPU are there already, and must not change before they are read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.event: torch.cuda.Event | None = None
        self.host = dict(tensors)
        there = {name: t for name, t in tensors.items() if t.is_cuda}
        for name, t in there.items():
            self.host[name] = torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
        if there:
            device = next(iter(there.values())).device
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> dict[str, torch.Tensor]:
        """All of them on the host."""
        if self.event is not None:
            self.event.synchronize()
        return self.host
