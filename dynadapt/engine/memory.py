"""What is remembered in activations: segment memory, or overlapping windows.

``SegmentMemory`` keeps, for every layer, the document's first ``sinks`` tokens and the last ``length`` tokens before the
segment (Dai et al. 2019, arXiv 1901.02860; sinks: Xiao et al. 2023, arXiv 2309.17453). Entries are in window order, so
entry j has position j; keys are stored before rotation and nothing is rotated again when the window moves.

Weights move under the cache, and ``refresh`` says what then:
- ``keep``: keys and values stay as they were computed (cheapest);
- ``reproject``: layer inputs are kept, and projected with the current weights at every step (Transformer-XL's own rule).

Layers of the gated delta rule keep a state instead (delta_state.py), which segment memory carries on beside the keys and values.

``Overlap`` re-runs the last ``context`` tokens in front of every segment: keys, values and inputs are all current.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynadapt.common.checks import choice, integer, keep

from .delta_state import DeltaState

__all__ = ["MemoryState", "Overlap", "SegmentMemory", "WindowStore"]


@dataclass(frozen=True)
class SegmentMemory:
    """``length`` tokens before the segment, behind the first ``sinks`` tokens of the document. With length 0 these are all there is: windows
    that share nothing but what a document begins with, such as a beginning-of-text token."""

    length: int = 512
    sinks: int = 4
    refresh: str = "keep"

    def __post_init__(self):
        keep(self, length=integer("length", self.length, least=0), sinks=integer("sinks", self.sinks, least=0))
        if not self.capacity:
            raise ValueError("length=0 with sinks=0: a memory of nothing; expected at least 1 of either (memory=None for no memory)")
        choice("refresh", self.refresh, ("keep", "reproject"), " (for recompute use Overlap)")

    @property
    def capacity(self) -> int:
        return self.sinks + self.length


@dataclass(frozen=True)
class Overlap:
    """The last ``context`` tokens are run again in front of every segment; only the segment is scored. The first ``begin`` of these are
    always the document's first, such as a beginning-of-text token."""

    context: int = 512
    begin: int = 0

    def __post_init__(self):
        keep(
            self,
            context=integer("context", self.context, expected="a number of tokens of at least 1 (memory=None for none)"),
            begin=integer("begin", self.begin, least=0, most=self.context),
        )

    def after(self, history: list[int], tokens: list[int]) -> list[int]:
        """What stands before the next segment: ``history`` stood before ``tokens``."""
        whole = history + tokens
        return whole if len(whole) <= self.context else whole[: self.begin] + whole[len(whole) - self.context + self.begin :]


class WindowStore:
    """Rows [slots, C, width], or [L, slots, C, width] of all layers, of one kind (keys, values or layer inputs), in window order."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def advance(self, slot: int, filled: int, new: torch.Tensor, sinks: int) -> None:
        """Append ``new`` [l, width] ([L, l, width]) behind the ``filled`` entries; sinks stay, the oldest of the rest give way."""
        rows, capacity, count = self.rows.select(-3, slot), self.rows.shape[-2], new.shape[-2]
        if filled + count <= capacity:
            rows[..., filled : filled + count, :] = new
            return
        fixed = min(sinks, filled)
        joined = torch.cat([rows[..., fixed:filled, :], new], -2)  # behind the sinks already there
        if fixed < sinks:  # the document's first tokens are only now arriving
            take = sinks - fixed
            rows[..., fixed:sinks, :] = joined[..., :take, :]
            joined = joined[..., take:, :]
        keep = capacity - sinks
        rows[..., sinks:, :] = joined[..., joined.shape[-2] - keep :, :]


class MemoryState:
    """The stores of all layers with attention and each slot's fill; ``length`` int32 [slots] is what attention reads, ``filled`` the same
    for the host. ``delta``: the ``DeltaState`` of a model that has layers of the gated delta rule, else None."""

    def __init__(
        self, memory: SegmentMemory, layers: int, slots: int, kv_width: int, hidden: int, dtype: torch.dtype, device="cpu", delta=None
    ):
        self.memory = memory
        self.delta: Any = delta
        stack = lambda width: torch.zeros(layers, slots, memory.capacity, width, dtype=dtype, device=device)  # noqa: E731
        self.key_stack, self.value_stack = stack(kv_width), stack(kv_width)  # [L, slots, C, W]
        self.input_stack = stack(hidden) if memory.refresh == "reproject" else None
        self.keys = [WindowStore(rows) for rows in self.key_stack]
        self.values = [WindowStore(rows) for rows in self.value_stack]
        self.inputs = None if self.input_stack is None else [WindowStore(rows) for rows in self.input_stack]
        self.length = torch.zeros(slots, dtype=torch.int32, device=device)
        self.filled = [0] * slots

    @classmethod
    def of(cls, config, memory: SegmentMemory, slots: int, dtype: torch.dtype, device, first: int = 0) -> MemoryState:
        """For a model of this config, of its layers from ``first`` on."""
        delta = None if config.delta is None else DeltaState(config.delta, slots, dtype, device)
        kv_width = config.kv_heads * config.head_dim
        layers = sum(i >= first for i in config.attention_layers)
        return cls(memory, layers, slots, kv_width, config.hidden_size, dtype, device, delta)

    def advance(self, source: torch.Tensor, columns: Sequence[int], stores, slots: Sequence[int], counts: Sequence[int]) -> None:
        """``memory_advance`` and ``memory_fill`` (ops/memory.py) where the host knows all numbers: slices, no index."""
        layers, rows, width = source.shape
        segments = source.view(layers, len(slots), rows // len(slots), width)  # [L, S, T, width]; L may be 0
        for column, rows in zip(columns, stores):
            store = WindowStore(rows)
            for i, (slot, count) in enumerate(zip(slots, counts)):
                store.advance(slot, self.filled[slot], segments[:, i, :count, column : column + rows.shape[-1]], self.memory.sinks)
        for slot, count in zip(slots, counts):
            self.count(slot, count)
            self.length[slot] = self.filled[slot]

    def count(self, slot: int, count: int) -> None:
        """The host's side of the fill alone, where the device keeps ``length`` itself."""
        self.filled[slot] = min(self.filled[slot] + count, self.memory.capacity)

    def clear(self, slot: int) -> None:
        self.length[slot] = 0
        self.filled[slot] = 0
        if self.delta is not None:
            self.delta.clear(slot)

    def slot_copy(self, slot: int) -> dict[str, torch.Tensor]:
        """What one slot remembers, [L, filled, width] of each kind, and the states of layers of the gated delta rule."""
        states = {} if self.delta is None else self.delta.tensors()
        kept = {kind: stack[:, slot, : self.filled[slot]] for kind, stack in self._stacks().items()}
        return {name: t.clone() for name, t in [*kept.items(), *((name, t[:, slot]) for name, t in states.items())]}

    def slot_load(self, slot: int, saved: dict[str, torch.Tensor]) -> None:
        """One slot remembers what ``slot_copy`` gave, of a memory of all layers or of the last ones."""
        for kind, stack in self._stacks().items():
            self.filled[slot] = saved[kind].shape[1]
            stack[len(stack) - len(saved[kind]) :, slot, : self.filled[slot]].copy_(saved[kind])
        self.length[slot] = self.filled[slot]
        if self.delta is not None:
            for name, states in self.delta.tensors().items():
                states[:, slot].copy_(saved[name])

    def _stacks(self) -> dict[str, torch.Tensor]:
        """What is remembered, [L, slots, C, width] of each kind."""
        return {"keys": self.key_stack, "values": self.value_stack} if self.input_stack is None else {"inputs": self.input_stack}

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {"length": self.length, **({} if self.delta is None else self.delta.tensors())}
        kinds = {"inputs": self.inputs} if self.inputs is not None else {"keys": self.keys, "values": self.values}
        for kind, stores in kinds.items():
            named.update({f"{kind}.{i}": store.rows for i, store in enumerate(stores)})
        return named

    def load(self, saved: dict[str, torch.Tensor]) -> None:
        for name, t in self.tensors().items():
            t.copy_(saved[name])
        self.filled = saved["length"].tolist()
