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

from .dispatch import reference
from .linear import lora_gradient
from .update import DIRECTIONS, Moments
from .weight_gradient import weight_gradient

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


def _apply(g, state: TensorState, rule: UpdateRule, lr: float) -> bool:
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


@reference
def lora_gradient_update(dy, x, u, dU, part_sizes, scale, slots, moving, a, bt, rule, lr, skipped) -> None:
    """One step of every stream's adapter; inputs as in ``linear.lora_gradient``.

    a: TensorState of [slots, P R, K]; bt: of [slots, R, O]; moving int32 [S], 0 for a stream that does not move;
    lr float32 [slots]; skipped int32 [S], a stream with another value than 0 on entry is left untouched.
    """
    for name, state in (("a", a), ("bt", bt)):
        state.check("lora_gradient_update", name, rule)
    dA, dBt = torch.zeros_like(a.master), torch.zeros_like(bt.master)
    lora_gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, False)
    for s, slot in enumerate(slots.tolist()):
        if not moving[s] or skipped[s]:
            continue
        rate = float(lr[slot])
        finite = [_apply(g[slot], state.of(slot), rule, rate) for g, state in ((dA, a), (dBt, bt))]
        skipped[s] = int(not all(finite))


@reference
def weight_gradient_update(dy, x, rows, weight, state, rule, lr, skipped) -> None:
    """One step of the rows ``rows`` (int32 [n]; None: all) of one weight; inputs as in ``weight_gradient``.

    weight [O, K]: the working copy, of which only these rows are written; state: TensorState of [n, K] whose ``working``
    is not used; lr float32 [1]; skipped int32 [1], nothing happens when it is not 0 on entry.
    """
    state.check("weight_gradient_update", "state", rule)
    if skipped[0]:
        return
    gradient = torch.zeros_like(state.master)
    weight_gradient(dy, x, rows, gradient, False)
    index = slice(None) if rows is None else rows.long()
    working = weight[index]
    own = TensorState(state.master, working, state.first, state.prior, state.stat, state.prior_rate)
    skipped[0] = int(not _apply(gradient, own, rule, float(lr[0])))
    weight[index] = working
