"""What changes in place: optimizer steps, resets and segment memory (ops/update, fused_update, reset, memory_advance).

Arguments and meaning are those of the ops of the same names; a ``TensorState`` is spelled out as its tensors.
"""

from __future__ import annotations

import torch

from dynadapt.ops.fused_update import TensorState, UpdateRule

from .registry import kernel, mutating


@mutating(
    "update(str kind, Tensor(a!) master, Tensor(b!) grad, Tensor(c!)? first, Tensor(d!)? second, Tensor? prior, "
    "Tensor? stat, Tensor(e!)? working, Tensor slots, Tensor lr, Tensor(f!) step, Tensor(g!) norms, Tensor(h!) skipped, "
    "Tensor? prior_rate=None, *, float decay=0, float clip=0, float beta1=0.9, float beta2=0.999, float eps=1e-8, "
    "float weight_decay=0, float momentum=0) -> ()"
)
def update(
    kind,
    master,
    grad,
    first,
    second,
    prior,
    stat,
    working,
    slots,
    lr,
    step,
    norms,
    skipped,
    prior_rate=None,
    *,
    decay=0.0,
    clip=0.0,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
):
    # master's dtype, not working's: the kernels serve either in `working`
    kernel("update", master)(
        kind,
        master,
        grad,
        first,
        second,
        prior,
        stat,
        working,
        slots,
        lr,
        step,
        decay,
        clip,
        beta1,
        beta2,
        eps,
        weight_decay,
        momentum,
        norms,
        skipped,
        prior_rate,
    )


@mutating(
    "reset(Tensor flags, Tensor slots, Tensor prior, Tensor(a!) master, Tensor(b!)? working, Tensor(c!)? grad, "
    "Tensor(d!)? first, Tensor(e!)? second, Tensor(f!) step) -> ()"
)
def reset(flags, slots, prior, master, working, grad, first, second, step):
    kernel("reset", master)(flags, slots, prior, master, working, grad, first, second, step)


@mutating("memory_advance(Tensor source, int[] columns, Tensor(a!)[] stores, Tensor mem_len, Tensor slots, Tensor counts, int sinks) -> ()")
def memory_advance(source, columns, stores, mem_len, slots, counts, sinks):
    kernel("memory_advance", source)(source, list(columns), list(stores), mem_len, slots, counts, sinks)


@mutating("memory_fill(Tensor(a!) mem_len, Tensor slots, Tensor counts, int capacity) -> ()")
def memory_fill(mem_len, slots, counts, capacity):
    _fill(mem_len)(mem_len, slots, counts, capacity)


def _fill(mem_len):
    """It has no activations: float32 stands for any dtype."""
    return kernel("memory_fill", mem_len.new_empty(0, dtype=torch.float32))


_STATE = (
    "Tensor({0}!) {p}master, Tensor({1}!)? {p}working, Tensor({2}!)? {p}first, Tensor? {p}prior, Tensor? {p}stat, Tensor? {p}prior_rate"
)
_RULE = "str kind, float decay=0, float momentum=0, float eps=0"


@mutating(
    "lora_gradient_update(Tensor dy, Tensor x, Tensor u, Tensor dU, int[] part_sizes, float scale, Tensor slots, "
    f"Tensor moving, {_STATE.format('a', 'b', 'c', p='a_')}, {_STATE.format('d', 'e', 'f', p='bt_')}, Tensor lr, "
    f"Tensor(g!) skipped, *, {_RULE}) -> ()"
)
def lora_gradient_update(
    dy,
    x,
    u,
    dU,
    part_sizes,
    scale,
    slots,
    moving,
    a_master,
    a_working,
    a_first,
    a_prior,
    a_stat,
    a_prior_rate,
    bt_master,
    bt_working,
    bt_first,
    bt_prior,
    bt_stat,
    bt_prior_rate,
    lr,
    skipped,
    *,
    kind,
    decay=0.0,
    momentum=0.0,
    eps=0.0,
):
    a = TensorState(a_master, a_working, a_first, a_prior, a_stat, a_prior_rate)
    bt = TensorState(bt_master, bt_working, bt_first, bt_prior, bt_stat, bt_prior_rate)
    rule = UpdateRule(kind, decay, momentum, eps)
    kernel("lora_gradient_update", dy)(dy, x, u, dU, list(part_sizes), scale, slots, moving, a, bt, rule, lr, skipped)


@mutating(
    "weight_gradient_update(Tensor dy, Tensor x, Tensor? rows, Tensor(d!) weight, "
    f"{_STATE.format('a', 'b', 'c', p='')}, Tensor lr, Tensor(e!) skipped, *, {_RULE}) -> ()"
)
def weight_gradient_update(
    dy, x, rows, weight, master, working, first, prior, stat, prior_rate, lr, skipped, *, kind, decay=0.0, momentum=0.0, eps=0.0
):
    state = TensorState(master, working, first, prior, stat, prior_rate)
    kernel("weight_gradient_update", dy)(dy, x, rows, weight, state, UpdateRule(kind, decay, momentum, eps), lr, skipped)
