"""The linear read-out with squared error against its reference."""

import pytest
import torch
from op_cases import check, each, rows_stand_alone, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.linear_mse import linear_mse

SIZES = [(1, 1), (63, 17), (100, 576)]


@each(linear_mse, [*SIZES, *((*size, False, False, False) for size in SIZES)])
def test_against_reference(case):
    check(case)


@each(linear_mse, [(100, 65)])
def test_threads_and_rows(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case)


def test_errors_name_the_argument():
    h, v = torch.zeros(4, 6), torch.zeros(4)
    with pytest.raises(ValueError, match=r"linear_mse: weight has shape \[4\], accepted is \[6\]"):
        _C.linear_mse(h, v, None, v, None, v, v, None, None, None)
