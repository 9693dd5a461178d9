"""What a recorded step decides on the device, each as one launch: as torch's operations they were up to 34, each as long as a launch is.

All are bound by latency: some numbers a stream, and the scores once. ``detect_changes`` has a program a stream, so that its bits depend on no
other one's; its statistics are float64, and so are the constants: a Python number beside a float64 one stays float64, as an argument it
would be float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dynadapt.ops.decisions import DRIFT, MIN_STD, THRESHOLD, WARMUP

from .common import launch, variant, wait_for_previous

BLOCK = 512  # numbers that a program's 128 threads read at once

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


_TYPES = dict.fromkeys(("counts", "slots", "moving", "flags"), "*i32") | {"nll": "*fp32", "table": "*fp64"}
VARIANTS = [variant("any", dynadapt_detect_changes, _TYPES, {"BLOCK": BLOCK}, registers=64)]
