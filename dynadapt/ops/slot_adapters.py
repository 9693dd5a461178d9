"""Adapters of one layer whose ranks and scales are each slot's own: where each one's A and Bt lie in one buffer.

``linear`` and ``lora_gradient`` take a ``SlotAdapters`` in the place of ``scale``. A and Bt are then one flat buffer, in which a slot's A
[W, K] and Bt [R, O] lie as those of a call with that slot's ranks alone would: the parts' rows of A one behind the other,
W = sum R_p, and of Bt a part has the upper R_p rows of its columns, R being the slot's largest R_p. A slot whose ranks are all 0 has no
adapter, and its rows are those of a call without one. u and dU have as many columns as the widest slot; those beyond a slot's own W are
neither read nor written.

So a row's result is the same to the bit whatever adapters the other slots have, and each costs what its own ranks cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class SlotAdapters:
    """Args:
        pairs: of each slot, (rank, scale) of each part.
        places: of each slot, the first elements of its A and of its Bt.
        device: of the tensors that kernels read.

    table int64 [slots, 2 + P]: places, then ranks. scales float32 [slots, P]. width: columns of u and dU, which are the rows of the
    largest A. rank: the largest of any slot and part.

    Raises:
        ValueError: slots with different numbers of parts, or not as many pairs as places.
    """

    pairs: Sequence[Sequence[tuple[int, float]]]
    places: Sequence[tuple[int, int]]
    device: torch.device | str = "cpu"
    table: torch.Tensor = field(init=False, repr=False)
    scales: torch.Tensor = field(init=False, repr=False)
    width: int = field(init=False)
    rank: int = field(init=False)

    def __post_init__(self):
        parts = {len(own) for own in self.pairs}
        if len(parts) != 1 or len(self.pairs) != len(self.places):
            raise ValueError(
                f"pairs are of {len(self.pairs)} slots with {sorted(parts)} parts, places of {len(self.places)}; expected as many, and "
                "equally many parts"
            )
        ranks = [tuple(rank for rank, _ in own) for own in self.pairs]
        table = [[*place, *own] for place, own in zip(self.places, ranks)]
        scales = [[scale for _, scale in own] for own in self.pairs]
        made = {
            "table": torch.tensor(table, dtype=torch.int64, device=self.device),
            "scales": torch.tensor(scales, dtype=torch.float32, device=self.device),
            "width": max(map(sum, ranks)),
            "rank": max(map(max, ranks)),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def ranks(self, slot: int) -> tuple[int, ...]:
        """Of each part."""
        return tuple(rank for rank, _ in self.pairs[slot])

    @property
    def parts(self) -> int:
        return self.scales.shape[1]

    def views(self, slot: int, A: torch.Tensor, Bt: torch.Tensor, k: int, o: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One slot's A [1, W, K] and Bt [1, R, O], views into the flat buffers."""
        (a, bt), ranks = self.places[slot], self.ranks(slot)
        width, rank = sum(ranks), max(ranks)
        return A[a : a + width * k].view(1, width, k), Bt[bt : bt + rank * o].view(1, rank, o)
