"""Cases of the optimizer step, alone and as the end of a gradient op."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from dynadapt.adapt.optimizers import SGD, Adam
from dynadapt.ops import lora_gradient, weight_gradient
from dynadapt.ops.update import UpdateRule, UpdateState

from .base import Draw, Op, OpCase
from .lora_gradient import lora_inputs
from .weight_gradient import weight_inputs

ADAM, MOMENTUM = Adam(clip=0.0).rule(), SGD(momentum=0.9, clip=0.0).rule()
UPDATE = Op("update", "state norms skipped", changed="state", wide="lr norms", streams="slots norms skipped")
LORA_GRADIENT_UPDATE = Op(
    "lora_gradient_update", "a bt skipped", changed="a bt skipped", wide="lr", rows="dy x u dU", streams="slots moving skipped"
)
WEIGHT_GRADIENT_UPDATE = Op("weight_gradient_update", "weight state skipped", changed="weight state skipped", wide="lr", rows="dy x")


def update(d: Draw, p: int, streams: int = 2, rule: UpdateRule = ADAM, label: str = "", **options) -> OpCase:
    """p parameters a slot; ``options``: other arguments of the op, or tensors of its state, such as step or prior."""
    slots = d.slot_count(streams)
    state = UpdateState(
        d.wide(slots, p),
        grad=d.wide(slots, p),
        first=d.wide(slots, p, scale=0.1),
        second=d.uniform(slots, p),
        prior=d.wide(p),
        stat=d.uniform(p) + 0.1,
        prior_rate=d.uniform(p),
        working=d.out(slots, p),
        step=torch.arange(slots, dtype=torch.int32, device=d.device) * 3,
    )
    own = {f.name: options.pop(f.name) for f in fields(UpdateState) if f.name in options}
    arguments = {
        "state": replace(state, **own),
        "rule": rule,
        "slots": d.slots(streams),
        "lr": d.uniform(slots) * 0.1,
        "norms": d.out(streams, wide=True),
        "skipped": torch.full((streams,), -1, dtype=torch.int32, device=d.device),
    }
    # read master, gradient twice (norm, then use), both moments; write master, moments, zero gradient, bf16 copy
    return OpCase(UPDATE, d.dtype, arguments, label, slots * p * (4 * 5 + 4 * 4 + 2)).change(**options)


def _state(d: Draw, count: int, *shape) -> UpdateState:
    """Every tensor of a learned one; those of slots lie in a wider buffer where the case is odd, as the engine keeps them."""

    def owned():
        return d.per_slot(count, shape, wide=True)[0] if count else d.wide(*shape)

    master = owned()
    working = master.to(d.dtype) if not count or not d.odd else d.per_slot(count, shape)[0].copy_(master)
    shared = dict(prior=d.wide(*shape), stat=d.uniform(*shape) + 0.1, prior_rate=d.uniform(*shape))
    return UpdateState(master, working=working, first=owned(), **shared)


def lora_gradient_update(d: Draw, n: int, k: int, parts, rank: int, streams: int, rule: UpdateRule = MOMENTUM, label: str = "") -> OpCase:
    count = d.slot_count(streams)
    arguments = {
        **lora_inputs(d, n, k, parts, rank, streams),
        "moving": torch.ones(streams, dtype=torch.int32, device=d.device),
        "a": _state(d, count, len(parts) * rank, k),
        "bt": _state(d, count, rank, sum(parts)),
        "rule": rule,
        "lr": 0.1 * d.uniform(count),
        "skipped": torch.zeros(streams, dtype=torch.int32, device=d.device),
    }
    # beside the gradient's reads: master and momentum read and written, the bf16 copy written
    learned = streams * rank * (len(parts) * k + sum(parts))
    moved = 2 * n * (sum(parts) + k + 2 * len(parts) * rank) + 18 * learned
    return OpCase(LORA_GRADIENT_UPDATE, d.dtype, arguments, label, moved, lora_gradient.flops(n, k, parts, rank))


def weight_gradient_update(
    d: Draw, n: int, out: int, k: int, chosen: int | None = None, rule: UpdateRule = MOMENTUM, label: str = ""
) -> OpCase:
    arguments = {
        **weight_inputs(d, n, out, k, chosen),
        "weight": d.acts(out, k),
        "state": replace(_state(d, 0, chosen or out, k), working=None),
        "rule": rule,
        "lr": 0.1 * d.uniform(1) / n**0.5,
        "skipped": torch.zeros(1, dtype=torch.int32, device=d.device),
    }
    count = chosen or out
    moved = 2 * n * (count + k) + 18 * count * k
    return OpCase(WEIGHT_GRADIENT_UPDATE, d.dtype, arguments, label, moved, weight_gradient.flops(n, count, k))
