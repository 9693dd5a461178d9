"""The linear read-out with squared error in Triton against its reference."""

import pytest
import torch
from op_cases import make_case, rows_stand_alone

from dynadapt.bench.cases.linear_mse import linear_mse
from dynadapt.kernels import linear_mse as kernels

from .compare import check, each, real_sizes, run

SIZES = [(1, 1), (63, 17), (100, 300), (1040, 5)]
FORMS = [(), (False, False, False), (True, False, True)]  # without weights rows of padding have an error, too


@each(linear_mse, [(*size, *form) for size in SIZES for form in FORMS])
def test_against_reference(case):
    check(case)


@pytest.mark.parametrize("missing", ["dh", "dweight", "dbias"])
def test_each_gradient_may_be_absent(missing):
    case = make_case(linear_mse, (50, 65))
    whole, rest = run(case), run(case.change(**{missing: None}))
    assert set(whole) == {*rest, missing} and all(torch.equal(whole[name], t) for name, t in rest.items())


@each(linear_mse, [(100, 65)])
def test_rows_stand_alone_and_bad_ones_stay_alone(case):
    rows_stand_alone(case, run)


def test_errors_name_the_argument():
    h, v = torch.zeros(4, 6), torch.zeros(4)
    with pytest.raises(ValueError, match=r"linear_mse: weight has shape \[4\], accepted is \[6\]"):
        kernels.linear_mse(h, v, None, v, None, v, v, None, None, None)


@real_sizes(linear_mse, [(512, 576), (20000, 4096)])
def test_real_sizes(case):
    check(case)
