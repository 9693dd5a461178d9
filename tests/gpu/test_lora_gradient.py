"""Adapter gradients in Triton against their reference: odd sizes, several parts, split tokens, streams that stay alone."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, make_case, same_bits, streams_stand_alone

from dynadapt.bench.cases.lora_gradient import lora_gradient
from dynadapt.kernels import lora_gradient as kernels
from dynadapt.kernels import lora_gradient_plan

from .compare import DTYPES, check, each, real_sizes, run

# rows N, inputs K, parts, rank, streams S
SIZES = [
    (1, 5, (3,), 1, 1),
    (63, 65, (33, 7, 7), 3, 1),
    (100, 96, (130,), 16, 2),
    (126, 77, (64, 31), 33, 3),
    (90, 65, (40, 33, 7), (5, 0, 17), 2),
    (80, 65, (40, 33, 9, 2), 4, 2),  # more than one launch takes
    (80, 65, (40, 33, 9, 2), (3, 2, 2, 5), 2),
]
REAL = [
    (4096, 2048, (2048, 512, 512), 16, 8),
    (4096, 2048, (8192, 8192), 16, 1),
    (512, 576, (576, 192, 192), 16, 1),
    (3000, 1536, (576,), 8, 3),
    (4096, 4096, (14336, 14336), 64, 8),
    (2048, 4096, (4096, 1024, 1024), 128, 2),
    (32768, 2048, (8192, 8192), 16, 64),
]


@each(lora_gradient, [(*size, accumulate) for size in SIZES for accumulate in (False, True)])
def test_against_reference(case):
    check(case)


@pytest.fixture
def chunks_of_32(monkeypatch):
    monkeypatch.setattr(lora_gradient_plan, "CHUNK", 32)


@each(lora_gradient, [(150, 70, (40, 33), 5, 2, False), (150, 70, (40, 33), 5, 2, True), (150, 70, (40, 7, 5, 6), 5, 2, True)])
def test_tokens_split_or_not_give_the_same_bits(case, chunks_of_32, monkeypatch, products_of_any_tile):
    case = case.change(scale=0.625)  # no power of two: it rounds, and has to where the sum is whole
    split = check(case)
    monkeypatch.setattr(lora_gradient_plan, "SMS", 1)
    assert same_bits(split, run(case))


@each(lora_gradient, [(150, 70, (40, 33, 9), (5, 0, 17), 2, accumulate) for accumulate in (False, True)])
def test_parts_with_ranks_of_their_own_have_their_scales_when_tokens_are_split(case, chunks_of_32, monkeypatch, products_of_any_tile):
    split = check(case)
    monkeypatch.setattr(lora_gradient_plan, "SMS", 1)
    assert same_bits(split, run(case))


@each(lora_gradient, [SIZES[3]], [torch.float32])
def test_whole_slots_are_written_and_only_those(case):
    others = [s for s in range(len(case["dA"])) if s not in case["slots"]]
    for name, out in run(case).items():
        assert case[name][case["slots"].long()].isnan().all() and torch.isfinite(out).all()
        assert torch.equal(out[others], case[name][others])


@each(lora_gradient, [(120, 65, (40, 33), 7, 3)])
def test_streams_stand_alone_and_a_bad_row_stays_in_its_stream(case, chunks_of_32):
    streams_stand_alone(case, run)
    a_bad_stream_stays_alone(case, run)


def test_errors_name_the_argument():
    good = make_case(lora_gradient, (10, 6, (4,), 2, 2)).arguments
    call = lambda **change: kernels.lora_gradient(**{**good, **change})  # noqa: E731
    with pytest.raises(ValueError, match=r"lora_gradient: part_sizes add up to 5, accepted is the width of dy, 4"):
        call(part_sizes=[2, 3])
    with pytest.raises(ValueError, match=r"lora_gradient: u has shape \[9, 2\], accepted is \[10, 2\]"):
        call(u=good["u"][:9])
    with pytest.raises(ValueError, match=r"lora_gradient: slots has 3 entries for 10 rows"):
        call(slots=torch.zeros(3, dtype=torch.int32))


@real_sizes(lora_gradient, REAL, DTYPES)
def test_real_sizes(case):
    check(case)
