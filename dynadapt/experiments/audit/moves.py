"""By how much scores moved that must not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

ENDLESS = 1e30  # what a score in one place alone has moved by: JSON has no infinity


@dataclass
class Moves:
    """Of all places that were `seen`, those where something moved by more than `limit` nats, and the most that anything did."""

    limit: float
    evidence: list[dict] = field(default_factory=list)
    tried: int = 0
    largest: float = 0.0

    def see(self, moved: float, place: dict) -> None:
        self.tried += 1
        self.largest = max(self.largest, moved)
        if moved > self.limit:
            self.evidence.append({**place, "moved": moved})

    def sorted(self) -> list[dict]:
        """The evidence, the largest first."""
        return sorted(self.evidence, key=lambda place: -place["moved"])


def difference(one: float, other: float) -> float:
    if one == other or math.isnan(one) and math.isnan(other):
        return 0.0
    found = abs(one - other)
    return found if math.isfinite(found) else ENDLESS


def largest(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """(index, nats) of the largest difference."""
    if not len(one):
        return 0, 0.0
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    moved = np.where(equal, 0.0, np.nan_to_num(np.abs(one - other), nan=ENDLESS, posinf=ENDLESS))
    index = int(moved.argmax())
    return index, float(moved[index])


def at(place: dict) -> str:
    return f"document {place['document']}, position {place['position']}"


def same(most: float) -> str:
    return "to the bit" if most == 0.0 else f"by {most:.2g} nats at most"


def nats(moved: float) -> str:
    return "without end" if moved >= ENDLESS else f"by {moved:.3g} nats"
