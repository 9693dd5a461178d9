"""One optimizer step for every learned tensor of every stream: squared norms, then everything else in one pass over memory.

Three launches, whatever the number of tensors and streams:

    1. squares   each program adds up the squares of its share of one stream's gradient, in float64
    2. begin     one program a stream: norm, clipping factor, learning rate with Adam's corrections, counted step
    3. apply     every element: clip, moments, decay to the prior, master, working copy, zeroed gradient

The gradient is read twice because clipping needs its norm first, all else once: Adam with a bf16 working copy costs
38 bytes an element. Sums are float64, so that a gradient of 1e30 is clipped and not skipped, and their order depends on
P alone, so that a stream's bits do not depend on the other streams. Not fused into the gradient kernels: those of
``lora_gradient`` and ``weight_gradient`` do that where there is nothing to clip.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import Variant, launch, scratch, variant, wait_for_previous

KINDS = ("sgd", "adam", "adamw", "rms", "lion")
GROUPS = 512  # programs a stream that add up squares: about four for each of the H200's 132 multiprocessors
SQUARES_BLOCK = 4096  # 128 threads with eight 16-byte loads each
# One 16-byte load a thread from each float32 tensor. With eight elements a thread Triton would give the bf16 copy a layout of
# its own and pass it through shared memory.
APPLY_BLOCK, APPLY_WARPS = 1024, 8

_SGD: tl.constexpr = tl.constexpr(KINDS.index("sgd"))
_ADAM: tl.constexpr = tl.constexpr(KINDS.index("adam"))
_ADAMW: tl.constexpr = tl.constexpr(KINDS.index("adamw"))
_LION: tl.constexpr = tl.constexpr(KINDS.index("lion"))
# What ``begin`` hands to ``apply``, float32 each.
_SKIPPED: tl.constexpr = tl.constexpr(0)
_CLIP: tl.constexpr = tl.constexpr(1)  # factor of the gradient
_RATE: tl.constexpr = tl.constexpr(2)  # learning rate, with the first moment's correction
_CORRECTION: tl.constexpr = tl.constexpr(3)  # of the second moment
_WEIGHT_RATE: tl.constexpr = tl.constexpr(4)  # learning rate times weight decay
SCALARS = 8


@triton.jit(do_not_specialize=["groups"])
def dynadapt_update_squares(grad, slots, partials, P, groups, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """partials float64 [S, GROUPS]: program (group, stream) adds blocks group, group + groups, ..."""
    wait_for_previous()
    group, stream = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + stream).to(tl.int64)
    if slot >= 0:
        total = tl.zeros([BLOCK], tl.float64)
        i = tl.arange(0, BLOCK)
        for k in range(0, tl.cdiv(tl.cdiv(P, BLOCK) - group, groups)):
            start = (k * groups + group).to(tl.int64) * BLOCK
            g = tl.load(grad + (slot * P + start) + i, i < P - start, other=0.0).to(tl.float64)
            total += g * g
        tl.store(partials + stream * GROUPS + group, tl.sum(total, 0))


@triton.jit
def _power(base, exponent):
    """base ** exponent in float64, by squaring."""
    result = base * 0.0 + 1.0
    while exponent > 0:
        result = tl.where(exponent % 2 == 1, result * base, result)
        base *= base
        exponent = exponent // 2
    return result


@triton.jit(do_not_specialize=["groups"])
def dynadapt_update_begin(
    partials,
    slots,
    lr,
    step,
    norms,
    skipped,
    scalars,
    groups,
    clip,
    rest1,
    rest2,
    weight_decay,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    SCALARS: tl.constexpr,
):
    """rest1, rest2: 1 - beta, which float32 holds to more digits of the corrections than it would beta."""
    wait_for_previous()
    stream = tl.program_id(0)
    slot = tl.load(slots + stream)
    if slot < 0:
        tl.store(norms + stream, 0.0)
        tl.store(skipped + stream, 0)
    else:
        g = tl.arange(0, GROUPS)
        norm = tl.sqrt(tl.sum(tl.load(partials + stream * GROUPS + g, g < groups, other=0.0), 0))
        bad = (norm != norm) | (norm == float("inf"))
        tl.store(norms + stream, norm.to(tl.float32))
        tl.store(skipped + stream, bad.to(tl.int32))
        out = scalars + stream * SCALARS
        tl.store(out + _SKIPPED, bad.to(tl.float32))
        if bad == 0:
            count = tl.load(step + slot) + 1
            tl.store(step + slot, count)
            rate = tl.load(lr + slot).to(tl.float64)
            clipping = (clip > 0.0) & (norm + 1e-6 > clip)
            tl.store(out + _CLIP, tl.where(clipping, clip / (norm + 1e-6), 1.0).to(tl.float32))
            tl.store(out + _WEIGHT_RATE, (rate * weight_decay).to(tl.float32))
            if (KIND == _ADAM) | (KIND == _ADAMW):
                one = norm * 0.0 + 1.0
                rate = rate / (one - _power(one - rest1, count))
                tl.store(out + _CORRECTION, (one / (one - _power(one - rest2, count))).to(tl.float32))
            tl.store(out + _RATE, rate.to(tl.float32))


@triton.jit
def dynadapt_update_apply(
    master,
    grad,
    first,
    second,
    prior,
    prior_rate,
    stat,
    working,
    slots,
    scalars,
    P,
    decay,
    beta1,
    beta2,
    rest1,
    rest2,
    eps,
    momentum,
    prior_stride,
    rate_factor,
    KIND: tl.constexpr,
    SCALARS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``first`` and ``second`` are None where the kind keeps no such moment, ``prior`` where nothing decays, ``prior_rate``
    where all decay alike, ``rate_factor`` where all learn alike; ``prior_stride`` is P where slots have priors of their own, else 0."""
    wait_for_previous()
    stream = tl.program_id(1)
    slot = tl.load(slots + stream).to(tl.int64)
    if slot >= 0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)  # [BLOCK]
        inside = i < P - start
        at = slot * P + start  # of this block in [slots, P]
        if tl.load(scalars + stream * SCALARS + _SKIPPED) == 0.0:
            # All loads come before the first store, which the compiler could not move them past.
            rate = tl.load(scalars + stream * SCALARS + _RATE)
            g = tl.load(grad + at + i, inside, other=0.0) * tl.load(scalars + stream * SCALARS + _CLIP)
            m = tl.load(master + at + i, inside, other=0.0)
            share = decay
            target = m
            if prior is not None:
                target = tl.load(prior + slot * prior_stride + start + i, inside, other=0.0)
                if prior_rate is not None:
                    share = decay * tl.load(prior_rate + start + i, inside, other=0.0)
            if KIND == _SGD:
                mean = g
                if first is not None:
                    mean += momentum * tl.load(first + at + i, inside, other=0.0)
                d = rate * mean
            elif (KIND == _ADAM) | (KIND == _ADAMW):
                mean = g
                if first is not None:
                    mean = beta1 * tl.load(first + at + i, inside, other=0.0) + rest1 * g
                v = beta2 * tl.load(second + at + i, inside, other=0.0) + rest2 * g * g
                d = rate * mean / (tl.sqrt_rn(v * tl.load(scalars + stream * SCALARS + _CORRECTION)) + eps)
                if KIND == _ADAMW:
                    d += tl.load(scalars + stream * SCALARS + _WEIGHT_RATE) * m
            elif KIND == _LION:
                c = g
                if first is not None:
                    old = tl.load(first + at + i, inside, other=0.0)
                    c = beta1 * old + rest1 * g
                    mean = beta2 * old + rest2 * g
                d = tl.where(c > 0, rate, 0.0) - tl.where(c < 0, rate, 0.0)
                d += tl.load(scalars + stream * SCALARS + _WEIGHT_RATE) * m
            else:
                d = rate * g / (tl.load(stat + start + i, inside, other=1.0) + eps)
            if rate_factor is not None:
                d *= tl.load(rate_factor + start + i, inside, other=0.0)
            if first is not None:
                tl.store(first + at + i, mean, inside)
            if second is not None:
                tl.store(second + at + i, v, inside)
            if prior is not None:
                m += share * (target - m)
            m -= d
            tl.store(master + at + i, m, inside)
            if working is not None:
                tl.store(working + at + i, m.to(working.dtype.element_ty), inside)
        tl.store(grad + at + i, tl.zeros([BLOCK], tl.float32), inside)


def _check(shape, **tensors) -> None:
    for name, t in tensors.items():
        if t is not None and (tuple(t.shape) != shape or not t.is_contiguous()):
            raise ValueError(
                f"update: {name} has shape {list(t.shape)} and strides {list(t.stride())}, accepted is {list(shape)}, contiguous"
            )


def update(state, rule, slots, lr, norms, skipped) -> None:
    """One optimizer step of several streams; see dynadapt.ops.update for the arguments, all contiguous."""
    if rule.kind not in KINDS:
        raise ValueError(f"update: kind={rule.kind!r}, accepted is one of {', '.join(KINDS)}")
    (count, P), S, uses = state.master.shape, slots.shape[0], rule.uses
    _check((count, P), **{name: getattr(state, name) for name in ("master", "grad", "first", "second", "working")})
    own = state.prior is not None and state.prior.dim() == 2
    _check((count, P) if own else (P,), prior=state.prior)
    _check((P,), prior_rate=state.prior_rate, stat=state.stat, rate_factor=state.rate_factor)
    _check((count,), lr=lr, step=state.step)
    _check((S,), norms=norms, skipped=skipped)
    state.check("update", "state", rule)
    if S == 0 or P == 0:
        return
    groups = min(GROUPS, triton.cdiv(P, SQUARES_BLOCK))
    partials = scratch(state.master.device, "update_squares", S, GROUPS, dtype=torch.float64)
    scalars = scratch(state.master.device, "update_scalars", S, SCALARS)
    tensors = {name: getattr(state, name) for name in ("master", "grad", "working", "step")}
    tensors |= {name: getattr(state, name) if name in uses else None for name in ("first", "second", "stat")}
    tensors |= {name: getattr(state, name) if rule.decay else None for name in ("prior", "prior_rate")}
    tensors |= dict(
        rate_factor=state.rate_factor,
        prior_stride=P if own else 0,
        slots=slots,
        lr=lr,
        norms=norms,
        skipped=skipped,
        partials=partials,
        scalars=scalars,
    )
    numbers = {name: float(getattr(rule, name)) for name in ("clip", "weight_decay", "decay", "beta1", "beta2", "eps", "momentum")}
    numbers |= dict(rest1=1.0 - rule.beta1, rest2=1.0 - rule.beta2)
    given = tensors | numbers | dict(P=P, groups=groups, KIND=KINDS.index(rule.kind), GROUPS=GROUPS, SCALARS=SCALARS)
    launch(dynadapt_update_squares, (groups, S), given, BLOCK=SQUARES_BLOCK, num_warps=4)
    launch(dynadapt_update_begin, (S,), given, num_warps=4)
    launch(dynadapt_update_apply, (triton.cdiv(P, APPLY_BLOCK), S), given, BLOCK=APPLY_BLOCK, num_warps=APPLY_WARPS)


_TYPES = {
    **dict.fromkeys(("master", "grad", "first", "second", "prior", "prior_rate", "stat", "lr", "norms", "scalars", "rate_factor"), "*fp32"),
    **{"partials": "*fp64", "working": "*bf16", "slots": "*i32", "step": "*i32", "skipped": "*i32"},
    **dict.fromkeys(("clip", "weight_decay", "decay", "beta1", "beta2", "rest1", "rest2", "eps", "momentum"), "fp32"),
}
_UNUSED = {
    "sgd": ("second", "stat", "prior_rate", "rate_factor"),
    "adam": ("prior", "prior_rate", "stat", "rate_factor"),
    "adamw": ("stat",),
    "rms": ("first", "second", "rate_factor"),
    "lion": ("second", "stat", "prior_rate", "rate_factor"),
}


def _variants():
    yield variant("any", dynadapt_update_squares, _TYPES, {"GROUPS": GROUPS, "BLOCK": SQUARES_BLOCK})
    yield variant("adam", dynadapt_update_begin, _TYPES, {"KIND": KINDS.index("adam"), "GROUPS": GROUPS, "SCALARS": SCALARS})
    for number, kind in enumerate(KINDS):
        constants = {**dict.fromkeys(_UNUSED[kind]), "KIND": number, "SCALARS": SCALARS, "BLOCK": APPLY_BLOCK}
        yield variant(kind, dynadapt_update_apply, _TYPES, constants, num_warps=APPLY_WARPS)


VARIANTS: list[Variant] = list(_variants())
