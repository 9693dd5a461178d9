"""Gradient of the low-rank adapters, and the same with the optimizer's step (ops/lora_gradient.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import lora_gradient as op_lora
from dynadapt.ops.update import UpdateRule, UpdateState

from .registry import contiguous, functional, kernel, mutating, wide_zeros

# An UpdateState and an UpdateRule are spelled out as their fields.
STATE = "Tensor({0}!) {p}master, Tensor({1}!)? {p}working, Tensor({2}!)? {p}first, Tensor? {p}prior, Tensor? {p}stat, Tensor? {p}prior_rate"
RULE = "str kind, float decay=0, float momentum=0, float eps=0"


def fused_state(master, working, first, prior, stat, prior_rate) -> UpdateState:
    """The arguments of STATE."""
    return UpdateState(master, working=working, first=first, prior=prior, stat=stat, prior_rate=prior_rate)


def fused_rule(kind, **numbers) -> UpdateRule:
    """The arguments of RULE; torch leaves out what is as the schema has it."""
    return UpdateRule(kind, **{"eps": 0.0, **numbers})


def slots_of(slots, A):
    """The slots of an adapter: one stream in slot 0 unless they are given."""
    return torch.zeros(1, dtype=torch.int32, device=A.device) if slots is None and A is not None else slots


def _flops(dy, x, u, dU, part_sizes, scale, slots, slot_count):
    return op_lora.flops(x[0], x[1], part_sizes, u[1] // len(part_sizes))


@functional(
    "lora_gradient(Tensor dy, Tensor x, Tensor u, Tensor dU, int[] part_sizes, float scale, Tensor? slots, "
    "int slot_count) -> (Tensor dA, Tensor dBt)",
    _flops,
    gradient=True,
)
def lora_gradient(dy, x, u, dU, part_sizes, scale, slots, slot_count):
    dA = wide_zeros(dy, slot_count, u.shape[1], x.shape[1])  # zero for slots that no row belongs to
    dBt = wide_zeros(dy, slot_count, u.shape[1] // len(part_sizes), dy.shape[1])
    yield dA, dBt
    dy, x, u, dU = contiguous(dy, x, u, dU)
    kernel("lora_gradient", dy)(dy, x, u, dU, list(part_sizes), scale, slots_of(slots, dA), dA, dBt, False)


@mutating(
    "lora_gradient_update(Tensor dy, Tensor x, Tensor u, Tensor dU, int[] part_sizes, float scale, Tensor slots, "
    f"Tensor moving, {STATE.format('a', 'b', 'c', p='a_')}, {STATE.format('d', 'e', 'f', p='bt_')}, Tensor lr, "
    f"Tensor(g!) skipped, *, {RULE}) -> ()"
)
def lora_gradient_update(dy, x, u, dU, part_sizes, scale, slots, moving, *states_lr_and_skipped, **numbers):
    *states, lr, skipped = states_lr_and_skipped
    a, bt, rule = fused_state(*states[:6]), fused_state(*states[6:]), fused_rule(**numbers)
    kernel("lora_gradient_update", dy)(dy, x, u, dU, list(part_sizes), scale, slots, moving, a, bt, rule, lr, skipped)
