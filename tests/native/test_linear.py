"""linear_forward and linear_backward against their references, at odd sizes, and independent of batching and threads."""

import pytest
import torch
from op_cases import check, each, rows_stand_alone, run, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C
from dynadapt.bench.cases.linear import linear_backward, linear_forward

OPS = [linear_forward, linear_backward]
# rows N, inputs K, parts, rank (0: no adapter), streams S
SIZES = [
    (1, 5, (3,), 0, 1),
    (1, 64, (32, 32), 4, 1),
    (63, 65, (33, 7, 7), 3, 1),
    (100, 96, (130,), 16, 2),
    (126, 577, (64, 31), 33, 3),
    (512, 192, (96, 64, 64), 16, 1),
]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(linear_backward, SIZES[3:4])
def test_backward_without_dx_gives_the_same_dU(case):
    assert torch.equal(run(case)["dU"], run(case.change(dx=None))["dU"])


@each(OPS, [(111, 77, (65, 40), 5, 3)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case)


@each(OPS, [(100, 96, (130, 9), 16, 2)])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(OPS, [(60, 97, (33, 40), 8, 2)])
def test_a_bad_row_stays_alone(case, bad):
    rows_stand_alone(case, value=bad, parts=False)


def test_errors_name_the_argument():
    weight = _C.PackedMatrix(torch.zeros(4, 6))
    x, y = torch.zeros(10, 6), torch.zeros(10, 4)
    forward = lambda **change: _C.linear_forward(
        **{**dict(x=x, parts=[weight], bias=None, A=None, Bt=None, slots=None, scale=1.0, u=None, y=y), **change}
    )  # noqa: E731
    forward()
    with pytest.raises(ValueError, match=r"linear_forward: parts\[0\] has shape \[4, 6\], accepted is \[any, 5\]"):
        forward(x=torch.zeros(10, 5))
    with pytest.raises(ValueError, match=r"y has dtype bfloat16, accepted is float32"):
        forward(y=y.bfloat16())
    with pytest.raises(ValueError, match=r"x has strides"):
        forward(x=torch.zeros(6, 10).t())
    with pytest.raises(ValueError, match=r"A is given without Bt"):
        forward(A=torch.zeros(1, 2, 6))
    adapter = dict(A=torch.zeros(2, 2, 6), Bt=torch.zeros(2, 2, 4), u=torch.zeros(10, 2))
    forward(slots=torch.zeros(2, dtype=torch.int32), **adapter)
    with pytest.raises(ValueError, match=r"slots\[1\] is 2, accepted is 0 to 1"):
        forward(slots=torch.tensor([0, 2], dtype=torch.int32), **adapter)
    with pytest.raises(ValueError, match=r"slots has 3 entries for 10 rows"):
        forward(slots=torch.zeros(3, dtype=torch.int32), **adapter)
    with pytest.raises(ValueError, match=r"slots is missing"):
        forward(**adapter)
    with pytest.raises(ValueError, match=r"parts has a Tensor, accepted is PackedMatrix"):
        forward(parts=[x])
