"""Adapters of streams that learn in different ways, as passes through the layers see them: side by side in one buffer.

Streams that have LoRA and update rule in common are one ``LoraLearner``, with the layout, the updates and the saved state of an engine
of theirs alone. What products read of all of them lies in one buffer, what gradients are written to in another; the ops find a stream's
own by ``SlotAdapters``, whose slots are the streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dynadapt.ops.slot_adapters import SlotAdapters

from .lora import LoraLearner

Key = tuple[int, str]


class MixedAdapters:
    """Of ``members``, each with the streams that its slots are of.

    Args:
        groups: {(layer, group): (K, part sizes)} for every linear group of the model, in forward order.
        fixed: shapes are, and one recording serves all streams: FLOPs count each as the widest, and nothing looks at who moves.
    """

    owns_weights = False
    weights_view = gradient_view = None
    magnitudes: Mapping = {}  # DoRA's are not here

    def __init__(self, members: Sequence[LoraLearner], streams: Sequence[Sequence[int]], groups, device="cpu", fixed: bool = False):
        self.members, self.streams, self.fixed = members, streams, fixed
        self.count = sum(map(len, streams))
        self.home = {stream: (m, slot) for m, own in enumerate(streams) for slot, stream in enumerate(own)}
        self.sizes = {key: sizes for key, sizes in groups.items() if any(key in member.sizes for member in members)}
        self.compute, starts = _in_one([member.state.compute for member in members])
        self.grad, _ = _in_one([member.state.take_gradients() for member in members])
        for member, start in zip(members, starts):
            state, size = member.state, member.state.master.numel()
            mine = lambda buffer: buffer[start : start + size].view_as(state.master)  # noqa: B023, E731
            state.grad = mine(self.grad)
            if state.working is None:
                state.master = mine(self.compute)
            else:
                state.working = mine(self.compute)
            member.bind()
        self.scales = {key: self._adapters(key, starts, device) for key in self.sizes}
        self.slots = [self._slots(own, device) for own in streams]
        self.order = [torch.tensor(own, dtype=torch.int64, device=device) for own in streams]

    def _adapters(self, key: Key, starts: Sequence[int], device) -> SlotAdapters:
        """Where all streams' adapters of one group lie."""
        parts = len(self.sizes[key][1])
        pairs: list[Sequence[tuple[int, float]]] = [((0, 0.0),) * parts] * self.count
        places = [(0, 0)] * self.count
        for stream, (m, slot) in self.home.items():
            member = self.members[m]
            if key in member.sizes:
                scale, layout, row = member.scales[key], member.layout, starts[m] + slot * member.layout.size
                pairs[stream] = scale if isinstance(scale, list) else [(rank, scale) for rank in member.ranks[key]]
                name = "{}.{}.".format(*key)
                places[stream] = row + layout.offsets[f"{name}A"], row + layout.offsets[f"{name}Bt"]
        return SlotAdapters(pairs, places, device)

    def _slots(self, own: Sequence[int], device) -> torch.Tensor:
        """int32 [streams + 1]: a stream's slot in one member, -1 for others, and behind them for a stream of -1."""
        slots = torch.full((self.count + 1,), -1, dtype=torch.int32)
        slots[list(own)] = torch.arange(len(own), dtype=torch.int32)
        return slots.to(device)

    # ---- what the decoder calls

    def adapter(self, layer: int, group: str):
        """(A, Bt) in the working dtype, which are one buffer, or (None, None) where no stream learns."""
        return (self.compute, self.compute) if (layer, group) in self.scales else (None, None)

    def ranks_of(self, layer: int, group: str, streams: Sequence[int]) -> list[tuple[int, ...]]:
        """Each part's rank, for each of ``streams``, that products cost."""
        own = self.scales[layer, group]
        if self.fixed:
            return [tuple(max(ranks) for ranks in zip(*map(own.ranks, range(self.count))))] * len(streams)
        return [own.ranks(stream) for stream in streams]

    def gradient(self, ops, layer, group, dy, x, u, dU, slots, accumulate) -> None:
        """Write or add to the adapter gradients of ``slots`` for one group."""
        sizes = list(self.sizes[layer, group][1])
        ops.lora_gradient(dy, x, u, dU, sizes, self.scales[layer, group], slots, self.grad, self.grad, accumulate)

    # ---- what the step calls

    def update(self, ops, streams: torch.Tensor, lr: torch.Tensor, norms: torch.Tensor, skipped: torch.Tensor) -> None:
        """One optimizer step for ``streams`` int32 [S] (-1: does not move), member by member; lr float32, one a stream.

        Writes norms [S] and skipped int32 [S].
        """
        norms.zero_()
        skipped.zero_()
        for member, slots, order in zip(self.members, self.slots, self.order):
            mine = slots[streams.long()]
            if self.fixed:
                own_norms, own_skipped = member.update(ops, mine, lr[order])
                norms += own_norms
                skipped += own_skipped
            elif len(rows := (mine >= 0).nonzero().flatten()):
                norms[rows], skipped[rows] = member.update(ops, mine[rows], lr[order])

    def put_back(self, op, flags: torch.Tensor, streams: torch.Tensor) -> None:
        """Of ``streams`` int32 [S], those that ``flags`` int32 [S] mark go back to the prior, on the device alone."""
        for member, slots in zip(self.members, self.slots):
            mine = slots[streams.long()]
            member.state.put_back(op, flags * (mine >= 0), mine.clamp(min=0), member.kept)


def _in_one(buffers: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """One flat buffer with all of ``buffers`` behind each other, and where each begins."""
    sizes = [buffer.numel() for buffer in buffers]
    return torch.cat([buffer.flatten() for buffer in buffers]), [sum(sizes[:i]) for i in range(len(sizes))]
