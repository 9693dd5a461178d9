"""Reset of flagged streams to the prior: one launch for all streams and buffers, which does nothing where no flag is set.

The step always holds it, because a captured graph cannot branch on the host; a program whose stream is not flagged reads
one integer and ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, Variant

BLOCK = 4096


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
    size,
    HAS_WORKING: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part, stream = tl.program_id(0), tl.program_id(1)
    if tl.load(flags + stream) != 0:
        slot = tl.load(slots + stream).to(tl.int64)
        column = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # a model's weights may be more than 2^31
        inside = column < size
        at = slot * size + column
        value = tl.load(prior + column, mask=inside, other=0.0)
        tl.store(master + at, value, mask=inside)
        if HAS_WORKING:
            tl.store(working + at, value.to(working.dtype.element_ty), mask=inside)
        _zero(grad, at, inside, HAS_GRAD)
        _zero(first, at, inside, HAS_FIRST)
        _zero(second, at, inside, HAS_SECOND)
        if part == 0:
            tl.store(step + slot, 0)


def reset(flags, slots, prior, master, working, grad, first, second, step) -> None:
    """See ``dynadapt.ops.reset``."""
    size = prior.shape[0]
    or_master = lambda t: master if t is None else t  # noqa: E731  (a pointer that is never used)
    dynadapt_reset[(triton.cdiv(size, BLOCK), len(slots))](  # only a grid's first axis goes beyond 65,535
        flags,
        slots,
        prior,
        master,
        or_master(working),
        or_master(grad),
        or_master(first),
        or_master(second),
        step,
        size,
        HAS_WORKING=working is not None,
        HAS_GRAD=grad is not None,
        HAS_FIRST=first is not None,
        HAS_SECOND=second is not None,
        BLOCK=BLOCK,
        **FUSION,
    )


VARIANTS = [
    Variant(
        "adam, bf16",
        dynadapt_reset,
        {
            "flags": "*i32",
            "slots": "*i32",
            "prior": "*fp32",
            "master": "*fp32",
            "working": "*bf16",
            "grad": "*fp32",
            "first": "*fp32",
            "second": "*fp32",
            "step": "*i32",
            "size": "i32",
        },
        {"HAS_WORKING": True, "HAS_GRAD": True, "HAS_FIRST": True, "HAS_SECOND": True, "BLOCK": BLOCK},
        aligned=("prior", "master", "working", "grad", "first", "second"),
    )
]
