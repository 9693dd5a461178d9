"""Gradient and optimizer step in one: what ``lora_gradient`` or ``weight_gradient`` would write is applied at once.

    g = the gradient, float32, never in memory
    d = lr g (sgd);  first = momentum first + g, d = lr first (sgd with momentum);  d = lr g / (stat + eps) (rms)
    master += decay prior_rate (prior - master) - d;  working = master rounded

This is ops/update.py with clip 0, for optimizers whose step needs nothing but the element itself: a norm over the whole
gradient (clipping) does not exist before the last element does, and Adam has no epilogue form here. A gradient that is not
finite is found where it arises, so it cannot keep its stream's other elements from moving: such an element keeps all
its state, ``skipped`` becomes 1, and later calls leave the stream untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .update import DIRECTIONS, Moments

KINDS = ("sgd", "rms")


@dataclass(frozen=True)
class UpdateRule:
    """How an element moves: ``kind`` sgd (``momentum`` 0 keeps no first moment) or rms (``eps`` beside the statistics).

    Raises:
        ValueError: a kind that has no epilogue form, such as adam.
    """

    kind: str
    decay: float = 0.0
    momentum: float = 0.0
    eps: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: a fused update serves {' and '.join(KINDS)}; others go through ops.update")

    @property
    def uses_first(self) -> bool:
        return self.kind == "sgd" and self.momentum > 0

    def hyper(self) -> dict[str, float]:
        return {"momentum": self.momentum, "eps": self.eps}


@dataclass
class TensorState:
    """One learned tensor: master float32 and its rounded ``working`` copy (None: the master serves) and ``first`` moment,
    all with a leading dimension of slots where streams own them; prior, stat and prior_rate have none. None where unused."""

    master: torch.Tensor
    working: torch.Tensor | None = None
    first: torch.Tensor | None = None
    prior: torch.Tensor | None = None
    stat: torch.Tensor | None = None
    prior_rate: torch.Tensor | None = None

    def check(self, op: str, name: str, rule: UpdateRule) -> None:
        """Raises ValueError when the rule needs a tensor that is not there."""
        needed = {
            "first": (rule.uses_first, f"momentum is {rule.momentum}"),
            "stat": (rule.kind == "rms", "kind is rms"),
            "prior": (rule.decay > 0, f"decay is {rule.decay}"),
        }
        for field, (used, why) in needed.items():
            if used and getattr(self, field) is None:
                raise ValueError(f"{op}: {name}.{field} is missing, a tensor is needed where {why}")

    def of(self, slot: int) -> TensorState:
        """One slot's share, as views."""
        row = lambda t: None if t is None else t[slot]  # noqa: E731
        return TensorState(row(self.master), row(self.working), row(self.first), self.prior, self.stat, self.prior_rate)


def apply(g, state: TensorState, rule: UpdateRule, lr: float) -> bool:
    """Moves ``state`` by g where g is finite; whether it was everywhere."""
    finite = torch.isfinite(g)
    first = None if state.first is None else state.first.clone()
    d = DIRECTIONS[rule.kind](g, Moments(state.master, first, None, state.stat, lr, 0), rule.hyper())
    moved = state.master
    if rule.decay:
        rate = rule.decay if state.prior_rate is None else rule.decay * state.prior_rate
        moved = moved + rate * (state.prior - moved)
    moved = moved - d
    state.master.copy_(torch.where(finite, moved, state.master))
    if rule.uses_first:
        state.first.copy_(torch.where(finite, first, state.first))
    if state.working is not None:
        state.working.copy_(torch.where(finite, moved.to(state.working.dtype), state.working))
    return bool(finite.all())
