"""The adapters' gradient against its reference, at odd sizes, and independent of batching and threads."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, check, each, make_case, run, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C
from dynadapt.bench.cases.lora_gradient import lora_gradient

# rows N, inputs K, parts, rank, streams S
SIZES = [(1, 5, (3,), 1, 1), (63, 65, (33, 7, 7), 3, 1), (100, 96, (130,), 16, 2), (126, 77, (64, 31), 33, 3), (512, 64, (96, 32), 16, 1)]


@each(lora_gradient, [(*size, accumulate) for size in SIZES for accumulate in (False, True)])
def test_against_reference(case):
    check(case)


@each(lora_gradient, [SIZES[3]], [torch.float32])
def test_whole_slots_are_written_and_only_those(case):
    others = [s for s in range(len(case["dA"])) if s not in case["slots"]]
    for name, out in run(case).items():
        assert case[name][case["slots"].long()].isnan().all() and torch.isfinite(out).all()
        assert torch.equal(out[others], case[name][others])


@each(lora_gradient, [(120, 65, (40, 33), 7, 3)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case)
    a_bad_stream_stays_alone(case)


@each(lora_gradient, [(*SIZES[2], True)])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


def test_errors_name_the_argument():
    good = make_case(lora_gradient, (10, 6, (4,), 2, 2)).arguments
    call = lambda **change: _C.lora_gradient(**{**good, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match=r"lora_gradient: slots has 1 more than once"):
        call(slots=torch.tensor([1, 1], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"part_sizes add up to 5, accepted is the width of dy, 4"):
        call(part_sizes=[2, 3])
