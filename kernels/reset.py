"""Reset of flagged streams to the prior: one launch for all streams and buffers, which does nothing where no flag is set.

The step always holds it, because a captured graph cannot branch on the host; a program whose stream is not flagged reads
one integer and ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import launch, variant, wait_for_previous

BLOCK = 2048


@triton.jit
def _zero(buffer, at, inside, HAS: tl.constexpr):
    if HAS:
        tl.store(buffer + at, tl.zeros(at.shape, tl.float32), mask=inside)


@triton.jit(do_not_specialize=["size"])
def dynadapt_reset(
    flags,
    slots,
    prior,
    master,
    working,
    grad,
    first,
    second,
    step,
    kept,
    size,
    OWN_PRIORS: tl.constexpr,
    HAS_KEPT: tl.constexpr,
    HAS_WORKING: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    part, stream = tl.program_id(0), tl.program_id(1)
    if tl.load(flags + stream) != 0:
        slot = tl.load(slots + stream).to(tl.int64)
        column = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # a model's weights may be more than 2^31
        inside = column < size
        at = slot * size + column
        value = tl.load(prior + (at if OWN_PRIORS else column), mask=inside, other=0.0)
        if HAS_KEPT:
            mine = tl.load(master + at, mask=inside, other=0.0)
            stays = (tl.load(kept + column, mask=inside, other=0) != 0) & (tl.abs(mine) < float("inf"))  # so is no NaN
            value = tl.where(stays, mine, value)
        tl.store(master + at, value, mask=inside)
        if HAS_WORKING:
            tl.store(working + at, value.to(working.dtype.element_ty), mask=inside)
        _zero(grad, at, inside, HAS_GRAD)
        _zero(first, at, inside, HAS_FIRST)
        _zero(second, at, inside, HAS_SECOND)
        if part == 0:
            tl.store(step + slot, 0)


def reset(flags, slots, prior, master, working, grad, first, second, step, kept=None) -> None:
    """See ``dynadapt.ops.reset``."""
    size = master.shape[1]
    given = dict(flags=flags, slots=slots, prior=prior, master=master, step=step, size=size, OWN_PRIORS=prior.dim() == 2, BLOCK=BLOCK)
    for name, tensor in dict(working=working, grad=grad, first=first, second=second, kept=kept).items():
        given |= {f"HAS_{name.upper()}": tensor is not None, name: master if tensor is None else tensor}  # a pointer that is never used
    launch(dynadapt_reset, (triton.cdiv(size, BLOCK), len(slots)), given)  # only a grid's first axis goes beyond 65,535


_TYPES = dict.fromkeys(("prior", "master", "grad", "first", "second"), "*fp32") | {"working": "*bf16"}
_TYPES |= dict.fromkeys(("flags", "slots", "step"), "*i32") | {"kept": "*i8"}
_ALL = {"HAS_WORKING": True, "HAS_GRAD": True, "HAS_FIRST": True, "HAS_SECOND": True, "HAS_KEPT": True, "OWN_PRIORS": True, "BLOCK": BLOCK}
VARIANTS = [variant("adam, bf16", dynadapt_reset, _TYPES, _ALL)]
