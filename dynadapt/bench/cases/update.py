"""Cases of the optimizer step, alone and where a gradient arises."""

from __future__ import annotations

from dataclasses import replace

import torch

from dynadapt.adapt.optimizers import SGD, Adam
from dynadapt.ops import lora_gradient, weight_gradient
from dynadapt.ops.linear import low_rank_size
from dynadapt.ops.update import UpdateRule, UpdateState

from .base import Draw, Op, OpCase
from .linear import widths
from .lora_gradient import lora_inputs
from .weight_gradient import weight_inputs

UPDATE = Op("update", "state norms skipped", changed="state", wide="state lr norms", streams="slots norms skipped")
LORA_GRADIENT_UPDATE = Op(
    "lora_gradient_update", "a bt skipped", changed="a bt skipped", wide="a bt lr", rows="dy x u dU", streams="slots moving skipped"
)
WEIGHT_GRADIENT_UPDATE = Op("weight_gradient_update", "weight state skipped", changed="weight state skipped", wide="state lr", rows="dy x")
MOMENTUM = SGD(momentum=0.9, clip=0.0).rule()


def update(d: Draw, p: int, streams: int = 2, rule: UpdateRule = Adam(clip=1.0).rule(), label: str = "", **tensors) -> OpCase:
    """p parameters a slot; ``tensors`` instead of those that are drawn for the state (None where the rule has no use for one)."""
    count, slots = d.slot_count(streams), d.slots(streams)
    working = d.acts(count, p)
    working[slots.long()] = float("nan")
    drawn = {
        "grad": d.wide(count, p),
        "first": d.wide(count, p, scale=0.1),
        "second": d.uniform(count, p),
        "prior": d.wide(p),
        "stat": d.uniform(p) + 0.1,
        "prior_rate": d.uniform(p),
        "working": working,
        "step": torch.arange(count, dtype=torch.int32, device=d.device) * 3,
    }
    arguments = {
        "state": UpdateState(d.wide(count, p), **{**drawn, **tensors}),
        "rule": rule,
        "slots": slots,
        "lr": d.uniform(count) * 0.1,
        "norms": d.out(streams, wide=True),
        "skipped": torch.full((streams,), -1, dtype=torch.int32, device=d.device),
    }
    # read master, gradient twice (norm, then use), both moments; write master, moments, zero gradient, bf16 copy
    return OpCase(UPDATE, d.dtype, arguments, label, streams * p * (4 * 5 + 4 * 4 + 2))


def _state(d: Draw, count: int, *shape) -> UpdateState:
    """Every tensor of a learned one; those of slots lie in a wider buffer where the case is odd, as the engine keeps them."""
    owned = lambda wide: d.per_slot(count, shape, wide=wide)[0] if count else (d.wide if wide else d.acts)(*shape)  # noqa: E731
    master, first = owned(True), owned(True)
    shared = {"prior": d.wide(*shape), "stat": d.uniform(*shape) + 0.1, "prior_rate": d.uniform(*shape)}
    return UpdateState(master, working=owned(False).copy_(master), first=first, **shared)


def lora_gradient_update(
    d: Draw, n: int, k: int, parts, rank: int | tuple, streams: int = 1, rule: UpdateRule = MOMENTUM, label: str = ""
) -> OpCase:
    count, (width, most, _) = d.slot_count(streams), widths(parts, rank)
    arguments = {
        **lora_inputs(d, n, k, parts, rank, streams),
        "moving": torch.ones(streams, dtype=torch.int32, device=d.device),
        "a": _state(d, count, width, k),
        "bt": _state(d, count, most, sum(parts)),
        "rule": rule,
        "lr": 0.1 * d.uniform(count) / n**0.5,
        "skipped": torch.zeros(streams, dtype=torch.int32, device=d.device),
    }
    # beside the gradient's reads: master and momentum read and written, the bf16 copy written
    learned = streams * sum(low_rank_size(k, parts, rank))
    moved = 2 * n * (sum(parts) + k + 2 * width) + 18 * learned
    return OpCase(LORA_GRADIENT_UPDATE, d.dtype, arguments, label, moved, lora_gradient.flops(n, k, parts, rank))


def weight_gradient_update(
    d: Draw, n: int, out: int, k: int, chosen: int | None = None, rule: UpdateRule = MOMENTUM, label: str = ""
) -> OpCase:
    count = chosen or out
    arguments = {
        **weight_inputs(d, n, out, k, chosen),
        "weight": d.acts(out, k),
        "state": replace(_state(d, 0, count, k), working=None),
        "rule": rule,
        "lr": 0.1 * d.uniform(1) / n**0.5,
        "skipped": torch.zeros(1, dtype=torch.int32, device=d.device),
    }
    moved = 2 * n * (count + k) + 18 * count * k
    return OpCase(WEIGHT_GRADIENT_UPDATE, d.dtype, arguments, label, moved, weight_gradient.flops(n, count, k))
