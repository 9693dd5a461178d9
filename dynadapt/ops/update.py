"""One optimizer step for every learned tensor of every stream, on flat buffers.

Per stream: g = grad, clipped to a global 2-norm of ``clip`` (g *= min(1, clip / (|g| + 1e-6)), 0 = none). A stream
whose gradient is not finite is skipped: only its gradient is zeroed. Then d = the optimizer's direction (one file each
in adapt/optimizers), and element by element

    master += decay prior_rate (prior - master) - rate_factor d
    working = master rounded;  grad = 0

d is lr times something in every kind, weight decay included, so ``rate_factor`` [P] gives each element a rate of its own (None: 1). The
way back to the prior has no lr in it and is not scaled: at a factor of 0 an element's moments go on, and it only moves to the prior.

lr [slots] and step [slots] are read from memory, so that a captured graph can replay the step.

``lora_gradient_update`` and ``weight_gradient_update`` apply the gradient where it arises, so that it is never in memory: the same
with clip 0, for the kinds whose step needs nothing but the element itself (a norm over the whole gradient does not exist before
the last element does). There a gradient that is not finite can't keep its stream's other elements from moving: such an element
keeps all its state, ``skipped`` becomes 1, and later calls leave the stream untouched.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch

from dynadapt.common.update_rule import KINDS, UpdateRule

from .dispatch import kernel_module, native_module
from .matrix_update import Parts, product_flops

Buffer = Any  # a tensor, or None


@dataclass(eq=False, repr=False)
class UpdateState:
    """The tensors of a step. Those of streams have a leading dimension of slots; None where the rule has no use for one.

    master, grad, first, second float32 (or wider), working the master rounded (None: the master serves), step int32 [slots]: all of
    streams; prior, stat, prior_rate, rate_factor: of all streams together, in the master's dtype, but that ``update`` takes a prior of each
    slot too. The fused updates know no grad, second and step, and refuse a rate_factor.
    """

    master: torch.Tensor
    _: KW_ONLY
    grad: Buffer = None
    first: Buffer = None
    second: Buffer = None
    prior: Buffer = None
    stat: Buffer = None
    prior_rate: Buffer = None
    working: Buffer = None
    step: Buffer = None
    rate_factor: Buffer = None
    parts = None  # type: Parts | None  # of a row, for kinds that move matrices; no tensor, hence no field

    def of(self, slot: int) -> UpdateState:
        """One slot's share, as views; without the count."""
        own = {name: getattr(self, name) for name in ("grad", "first", "second", "working")}
        views = {name: None if t is None else t[slot] for name, t in own.items()}
        prior = self.prior[slot] if self.prior is not None and self.prior.dim() == self.master.dim() else self.prior
        shared = {name: getattr(self, name) for name in ("stat", "prior_rate", "rate_factor")}
        own_state = UpdateState(self.master[slot], **views, prior=prior, **shared)
        own_state.parts = self.parts
        return own_state

    def check(self, op: str, name: str, rule: UpdateRule) -> None:
        """Raises ValueError when the rule needs a tensor that is not there, naming the op and what it calls this state."""
        for field in sorted(rule.uses):
            if getattr(self, field) is None:
                raise ValueError(f"{op}: {name}.{field} is missing, a tensor is needed for {rule}")

    def check_fused(self, op: str, name: str, rule: UpdateRule) -> None:
        """``check``, where the gradient's kernel updates: one rate serves all elements there."""
        self.check(op, name, rule)
        if self.rate_factor is not None:
            raise ValueError(f"{op}: {name}.rate_factor is given, and a fused update has one rate for all elements; go through ops.update")


def kinds_of(backend: str) -> tuple[str, ...]:
    """The kinds that the update of a backend knows."""
    if backend == "reference":
        return tuple(KINDS)
    return native_module().UPDATE_KINDS if backend == "cpu" else kernel_module("update").KINDS


def _move(g: torch.Tensor, state: UpdateState, rule: UpdateRule, lr: float, step: int) -> torch.Tensor:
    """The master of one slot after the step; moments change in place."""
    d = rule.arithmetic.direction(g, state, rule, lr, step)
    moved = state.master
    if rule.decay:
        rate = rule.decay if state.prior_rate is None else rule.decay * state.prior_rate
        moved = moved + rate * (state.prior - moved)
    return moved - (d if state.rate_factor is None else state.rate_factor * d)


def update(state: UpdateState, rule: UpdateRule, slots, lr, norms, skipped) -> None:
    """One step of the streams in ``slots``; all of ``state`` but prior, stat, prior_rate and rate_factor changes.

    state: of [slots, P]; slots int32 [S], -1 for a stream that does not move (norm 0, not skipped, gradient kept);
    lr float32 [slots]; state.step is counted up for the streams that move.
    Writes norms [S] (before clipping) and skipped int32 [S].
    """
    state.check("update", "state", rule)
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            norms[i], skipped[i] = 0, 0
            continue
        own = state.of(slot)
        norm = own.grad.double().square().sum().sqrt()
        norms[i] = norm
        skipped[i] = int(not torch.isfinite(norm))
        if not skipped[i]:
            state.step[slot] += 1
            g = own.grad * min(1.0, rule.clip / (norm.item() + 1e-6)) if rule.clip else own.grad
            own.master.copy_(_move(g, own, rule, float(lr[slot]), int(state.step[slot])))
            if own.working is not None:
                own.working.copy_(own.master)
        own.grad.zero_()


def apply_gradient(g: torch.Tensor, state: UpdateState, rule: UpdateRule, lr: float) -> bool:
    """Moves one slot's ``state`` by g where g is finite; whether it was everywhere."""
    finite = torch.isfinite(g)
    trial = replace(state, first=None if state.first is None else state.first.clone())
    moved = _move(g, trial, rule, lr, 0)
    state.master.copy_(torch.where(finite, moved, state.master))
    if "first" in rule.uses:
        state.first.copy_(torch.where(finite, trial.first, state.first))
    if state.working is not None:
        state.working.copy_(torch.where(finite, moved.to(state.working.dtype), state.working))
    return bool(finite.all())


def flops(parameters: int, rule: UpdateRule, parts: Parts | None = None, rate_factor: bool = False) -> int:
    """Arithmetic per element as written above and in the optimizer's file, of which torch's counter counts none; and the products of a
    kind that moves the matrices of ``parts``. ``rate_factor``: whether elements have rates of their own."""
    per = 2 + (1 if rule.clip else 0)  # squared norm, clip
    per += rule.arithmetic.flops(rule) + (3 if rule.decay else 0) + (1 if rate_factor else 0) + 1
    return parameters * per + (product_flops(parts.matrices) if parts is not None and rule.arithmetic.prepared else 0)
