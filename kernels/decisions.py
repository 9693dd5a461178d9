"""What a recorded step decides on the device, each as one launch; the definition in torch has up to 34, each as long as a launch is.

All are bound by latency: some numbers a stream, and the scores once. ``detect_changes`` has a program a stream, so that its bits depend on no
other one's; its statistics are float64, and so are the constants: a Python number beside a float64 one stays float64, as an argument it
would be float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dynadapt.ops.decisions import DRIFT, MIN_STD, THRESHOLD, WARMUP

from .common import launch, variant, wait_for_previous

BLOCK = 512  # scores of a segment that a program's 128 threads read at once
SCORES = 4096  # of a set of weights that all streams share, whose program reads them all
SETS = 128  # one a thread

_DRIFT: tl.constexpr = tl.constexpr(DRIFT)
_THRESHOLD: tl.constexpr = tl.constexpr(THRESHOLD)
_WARMUP: tl.constexpr = tl.constexpr(WARMUP)
_MIN_STD: tl.constexpr = tl.constexpr(MIN_STD)


@triton.jit
def _at_least(x, least: tl.constexpr):
    """x, or ``least`` where it is below; a NaN stays, which ``tl.maximum`` would drop."""
    return tl.where(x < least, tl.full([], least, tl.float64), x)


@triton.jit(do_not_specialize=["streams"])
def dynadapt_detect_changes(nll, counts, slots, table, moving, flags, segment, streams, BLOCK: tl.constexpr):
    wait_for_previous()
    row = tl.program_id(0)
    scores, i = nll + row.to(tl.int64) * segment, tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, segment, BLOCK):
        total += tl.load(scores + start + i, mask=start + i < segment, other=0.0).to(tl.float64)
    tokens = tl.load(counts + row)
    score = tl.sum(total, 0) / tl.maximum(tokens, 1).to(tl.float64)
    seen = (tokens > 0) & (tl.abs(score) < float("inf"))  # so is no NaN
    at = table + tl.load(slots + row)
    count, mean = tl.load(at), tl.load(at + streams)
    squares, statistic = tl.load(at + 2 * streams), tl.load(at + 3 * streams)
    std = _at_least(tl.sqrt(squares / _at_least(count - 1.0, 1.0)), _MIN_STD)
    warm, step = count >= _WARMUP, score - mean
    statistic = tl.where(warm, _at_least(statistic + step / std - _DRIFT, 0.0), statistic)
    flagged = seen & warm & (statistic > _THRESHOLD)
    tl.store(flags + row, flagged.to(tl.int32))
    if flagged:
        tl.store(moving + row, -1)
    if seen:
        new_count = count + 1.0
        new_mean = mean + step / new_count
        tl.store(at, tl.where(flagged, 0.0, new_count))
        tl.store(at + streams, tl.where(flagged, 0.0, new_mean))
        tl.store(at + 2 * streams, tl.where(flagged, 0.0, squares + step * (score - new_mean)))
        tl.store(at + 3 * streams, tl.where(flagged, 0.0, statistic))


@triton.jit
def dynadapt_admit_updates(nll, moving, admitted, skipped, scores, BLOCK: tl.constexpr):
    """A program a set of weights, whose ``scores`` lie behind each other."""
    wait_for_previous()
    row = tl.program_id(0)
    own, i = nll + row.to(tl.int64) * scores, tl.arange(0, BLOCK)
    bad = tl.zeros([BLOCK], tl.int32)
    for start in range(0, scores, BLOCK):
        score = tl.load(own + start + i, mask=start + i < scores, other=0.0)
        bad |= tl.where(tl.abs(score) < float("inf"), 0, 1)  # so is no NaN
    due = tl.load(moving + row) >= 0
    tl.store(admitted + row, due.to(tl.int32))
    tl.store(skipped + row, tl.where(due & (tl.max(bad, 0) == 0), 0, 1))


@triton.jit(do_not_specialize=["sets"])
def dynadapt_count_updates(moving, skipped, counters, moved, step, sets, BLOCK: tl.constexpr):
    """One program, so that nothing is added up by two."""
    wait_for_previous()
    updates, omissions = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, sets, BLOCK):
        i = start + tl.arange(0, BLOCK)
        slot = tl.load(moving + i, mask=i < sets, other=-1)
        due = slot >= 0
        left_out = due & (tl.load(skipped + i, mask=i < sets, other=0) != 0)
        made = due & (left_out == 0)
        tl.store(skipped + i, left_out.to(tl.int32), mask=i < sets)
        tl.store(moved + i, slot, mask=i < sets)
        if step is not None:
            tl.store(step + slot, tl.load(step + slot, mask=made, other=0) + 1, mask=made)
        updates += made.to(tl.int32)
        omissions += left_out.to(tl.int32)
    tl.store(counters, tl.load(counters) + tl.sum(updates, 0))
    tl.store(counters + 1, tl.load(counters + 1) + tl.sum(omissions, 0))


@triton.jit(do_not_specialize=["vocabulary"])
def dynadapt_take_tokens(
    tokens, counts, inputs, targets, moving, invalid, vocabulary, segment, row_stride, stride, SHARED: tl.constexpr, BLOCK: tl.constexpr
):
    """A program a row, which reads its tokens twice: whether all are ids, and what they are. SHARED: ``moving`` has one entry for all rows."""
    wait_for_previous()
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    own, at = tokens + row.to(tl.int64) * row_stride, row.to(tl.int64) * segment
    outside = tl.zeros([BLOCK], tl.int32)
    for start in range(0, segment + 1, BLOCK):
        token = tl.load(own + (start + i).to(tl.int64) * stride, mask=start + i <= segment, other=0)
        outside |= tl.where((token < 0) | (token >= vocabulary), 1, 0)
    bad = tl.max(outside, 0) > 0
    scored = tl.where(bad, 0, tl.load(counts + row))
    for start in range(0, segment, BLOCK):
        place = start + i
        token = tl.load(own + place.to(tl.int64) * stride, mask=place < segment, other=0)
        following = tl.load(own + (place.to(tl.int64) + 1) * stride, mask=place < segment, other=0)
        within = tl.where(token < 0, 0, tl.where(token >= vocabulary, vocabulary - 1, token))
        tl.store(inputs + at + place, within, mask=place < segment)
        tl.store(targets + at + place, tl.where(place < scored, following, -1), mask=place < segment)
    tl.store(invalid + row, bad.to(tl.int32))
    if bad:
        if SHARED:
            tl.atomic_min(moving, -1)
        else:
            tl.store(moving + row, -1)


def _check(op: str, sizes: dict[str, tuple], **tensors) -> None:
    for name, t in tensors.items():
        if tuple(t.shape) != sizes[name] or not t.is_contiguous():
            accepted = f"{list(sizes[name])}, contiguous"
            raise ValueError(f"{op}: {name} has shape {list(t.shape)} and strides {list(t.stride())}, accepted is {accepted}")


def _each(op: str, nll, sets: int) -> int:
    """Scores of each of ``sets`` in a row."""
    if nll.dim() != 1 or not nll.is_contiguous() or len(nll) % sets:
        raise ValueError(
            f"{op}: nll has shape {list(nll.shape)} and strides {list(nll.stride())}, accepted is a multiple of {sets} numbers in a row"
        )
    return len(nll) // sets


def detect_changes(nll, counts, slots, table, moving, flags) -> None:
    """See ``dynadapt.ops.decisions``."""
    rows, streams = len(counts), table.shape[-1]
    given = dict(nll=nll, counts=counts, slots=slots, table=table, moving=moving, flags=flags)
    sizes = dict.fromkeys(("counts", "slots", "moving", "flags"), (rows,)) | {"table": (4, streams)}
    _check("detect_changes", sizes, counts=counts, slots=slots, moving=moving, flags=flags, table=table)
    segment = _each("detect_changes", nll, rows)
    launch(dynadapt_detect_changes, (rows,), given, segment=segment, streams=streams, BLOCK=BLOCK, num_warps=4)


def admit_updates(nll, moving, admitted, skipped) -> None:
    """See ``dynadapt.ops.decisions``."""
    sets = len(moving)
    _check("admit_updates", dict.fromkeys(("admitted", "skipped", "moving"), (sets,)), moving=moving, admitted=admitted, skipped=skipped)
    given = dict(nll=nll, moving=moving, admitted=admitted, skipped=skipped, scores=_each("admit_updates", nll, sets))
    launch(dynadapt_admit_updates, (sets,), given, BLOCK=SCORES, num_warps=8)


def count_updates(moving, skipped, counters, moved, step=None) -> None:
    """See ``dynadapt.ops.decisions``."""
    sets, given = len(moving), dict(moving=moving, skipped=skipped, counters=counters, moved=moved)
    sizes = dict.fromkeys(("moving", "skipped", "moved"), (sets,)) | {"counters": (2,)}
    _check("count_updates", sizes, **given)
    if step is not None:
        _check("count_updates", {"step": (step.numel(),)}, step=step)
    launch(dynadapt_count_updates, (1,), given, step=step, sets=sets, BLOCK=SETS, num_warps=4)


def take_tokens(tokens, vocabulary, counts, inputs, targets, moving, invalid) -> None:
    """See ``dynadapt.ops.decisions``."""
    rows, segment = tokens.shape[0], tokens.shape[1] - 1
    shared = len(moving) == 1
    given = dict(counts=counts, inputs=inputs, targets=targets, moving=moving, invalid=invalid)
    sizes = {"inputs": (rows, segment), "targets": (rows * segment,), "moving": (1 if shared else rows,)}
    _check("take_tokens", dict.fromkeys(("counts", "invalid"), (rows,)) | sizes, **given)
    given |= dict(tokens=tokens, vocabulary=vocabulary, segment=segment, row_stride=tokens.stride(0), stride=tokens.stride(1))
    launch(dynadapt_take_tokens, (rows,), given, SHARED=shared, BLOCK=BLOCK, num_warps=4)


_I32 = ("counts", "slots", "moving", "flags", "admitted", "skipped", "moved", "step", "invalid")
_TYPES = (
    dict.fromkeys(_I32, "*i32")
    | dict.fromkeys(("tokens", "inputs", "targets"), "*i64")
    | {"nll": "*fp32", "table": "*fp64", "counters": "*i64"}
)
VARIANTS = [
    variant("any", dynadapt_detect_changes, _TYPES, {"BLOCK": BLOCK}, registers=64),
    variant("any", dynadapt_admit_updates, _TYPES, {"BLOCK": SCORES}, num_warps=8, registers=64),
    variant("update", dynadapt_count_updates, _TYPES, {"step": None, "BLOCK": SETS}, registers=64),
    variant("in the gradient kernels", dynadapt_count_updates, _TYPES, {"BLOCK": SETS}, registers=64),
    *(
        variant(name, dynadapt_take_tokens, _TYPES, {"stride": 1, "SHARED": shared, "BLOCK": BLOCK}, loose=("row_stride",), registers=64)
        for name, shared in (("streams' own weights", False), ("weights of all streams", True))
    ),
]
