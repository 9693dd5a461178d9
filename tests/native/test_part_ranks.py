"""Adapters whose parts have ranks and scales of their own, against their references, and at the cost of what is there."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, check, each, make_case, run, same_bits, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C
from dynadapt.bench.cases.linear import linear_backward, linear_forward
from dynadapt.bench.cases.lora_gradient import lora_gradient
from dynadapt.ops import linear as op_linear

OPS = [linear_forward, linear_backward, lora_gradient]
# rows N, inputs K, parts, each part's rank, streams S
SIZES = [
    (1, 5, (3, 4), (0, 1), 1),
    (63, 65, (33, 7, 7), (3, 0, 2), 1),
    (126, 77, (64, 31), (33, 5), 3),
    (512, 192, (96, 64, 64), (16, 0, 16), 1),
]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(lora_gradient, [(*size, True) for size in SIZES])
def test_gradients_add_up(case):
    check(case)


@each([linear_forward, linear_backward], [{"n": 60, "k": 192, "parts": (128, 64, 64), "rank": (5, 0, 16), "streams": 2, "base": "int8"}])
def test_over_int8(case):
    check(case)


@each(OPS, [(120, 77, (65, 40), (5, 0), 3)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case)


@each(lora_gradient, [(120, 65, (40, 33), (7, 0), 3)])
def test_a_bad_stream_stays_alone(case):
    a_bad_stream_stays_alone(case)


@each(OPS, [(100, 96, (130, 9), (0, 16), 2)])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


@each(OPS, [(63, 65, (33, 40, 7), 3, 1)])
def test_equal_ranks_are_one_rank(case):
    pairs = case.change(scale=[(3, case["scale"])] * 3)
    assert same_bits(run(pairs), run(case))


@each(linear_forward, [(63, 65, (33, 40, 7), (3, 0, 2), 1)])
def test_a_part_of_rank_zero_has_the_bits_of_one_without_adapter(case):
    without = run(case.change(A=None, Bt=None, u=None))
    assert torch.equal(run(case)["y"][:, 33:73], without["y"][:, 33:73])


def test_flops_are_those_of_what_is_there():
    k, parts = 8, (6, 2, 2)
    for flops in (op_linear.forward_flops, op_linear.backward_flops):
        base, whole = flops(10, k, parts), flops(10, k, parts, 4)
        assert flops(10, k, parts, (4, 4, 4)) == whole and flops(10, k, parts, (0, 0, 0)) == base
        assert flops(10, k, parts, (4, 0, 0)) - base == 2 * 10 * 4 * (k + 6)


def test_errors_name_the_argument():
    good = make_case(linear_forward, (10, 6, (4, 3), (2, 1), 2))
    arguments = {**good.arguments, "parts": [_C.PackedMatrix(w) for w in good["parts"]]}
    call = lambda **change: _C.linear_forward(**{**arguments, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match="scale has 1 pairs, accepted is one for each of 2 parts"):
        call(scale=[(2, 1.0)])
    with pytest.raises(ValueError, match="part_ranks is 3, accepted is 0 to 2"):
        call(scale=[(3, 1.0), (0, 1.0)])
    with pytest.raises(ValueError, match="part_ranks are at most 1, accepted is that the largest is Bt's rank, 2"):
        call(scale=[(1, 1.0), (1, 1.0)])
    with pytest.raises(ValueError, match="part_scales is nan"):
        call(scale=[(2, float("nan")), (1, 1.0)])
    with pytest.raises(ValueError, match="A has shape"):
        call(scale=[(2, 1.0), (2, 1.0)])
    with pytest.raises(TypeError, match=r"scale is a list, accepted is a number or a list of \(rank, scale\)"):
        call(scale=[1.0, 2.0])
