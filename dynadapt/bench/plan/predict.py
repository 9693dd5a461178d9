"""A step's work held against a machine's ceilings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .ceilings import Ceilings
from .work import Work

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class OpTime:
    """The least time of one op's calls in a step, in seconds, and which ceiling sets it: "products" or "traffic"."""

    name: str
    seconds: float
    limit: str


@dataclass(frozen=True)
class Prediction:
    """``floor``: seconds that a step takes when every op runs at the ceiling that limits it. ``seconds``: (median, low, high) with
    the slowdown over the floor that was measured on machines of this kind, None where none was."""

    work: Work
    ceilings: Ceilings
    ops: list[OpTime]
    seconds: tuple[float, float, float] | None

    @property
    def floor(self) -> float:
        return sum(op.seconds for op in self.ops)

    @property
    def limits(self) -> dict[str, float]:
        """Share of the floor by what limits it."""
        return {limit: sum(op.seconds for op in self.ops if op.limit == limit) / self.floor for limit in ("products", "traffic")}

    @property
    def binding(self) -> str:
        """What a faster step would need most: "memory" when the step does not fit, else "products" or "traffic"."""
        capacity = self.ceilings.memory
        return "memory" if capacity and self.work.bytes_held > capacity else max(self.limits, key=self.limits.get)


def predict(work: Work, ceilings: Ceilings, slowdowns: list[float] = ()) -> Prediction:
    """``slowdowns``: measured seconds over floor of steps on machines of this kind (measured.py)."""
    rate = ceilings.product_rate(NAMES[work.dtype])
    ops = []
    for name, op in work.ops.items():
        products, traffic = (op.flops - op.skipped) / rate, op.bytes / ceilings.bandwidth
        ops.append(OpTime(name, max(products, traffic), "products" if products > traffic else "traffic"))
    ops.sort(key=lambda op: -op.seconds)
    floor = sum(op.seconds for op in ops)
    ordered = sorted(slowdowns)
    seconds = (floor * ordered[len(ordered) // 2], floor * ordered[0], floor * ordered[-1]) if ordered else None
    return Prediction(work, ceilings, ops, seconds)
