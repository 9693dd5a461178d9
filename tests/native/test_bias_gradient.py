"""Bias gradients against their reference."""

import pytest
import torch
from op_cases import check, each, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.bias_gradient import bias_gradient


@each(bias_gradient, [(1, 1), (63, 17), (100, 577), (513, 40)])
def test_against_reference(case):
    check(case)
    check(case.change(dy=case["dy"].contiguous(), db=torch.zeros_like(case["db"])))


@each(bias_gradient, [(200, 65)])
def test_threads_change_nothing(case):
    same_bits_at_any_threads(case)


def test_a_bad_column_stays_alone():
    dy, db = torch.randn(50, 70), torch.zeros(70)
    dy[3, 20] = float("nan")
    _C.bias_gradient(dy, db)
    assert db[20].isnan() and db[torch.arange(70) != 20].isfinite().all()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"bias_gradient: db has shape \[4\], accepted is \[6\]"):
        _C.bias_gradient(torch.zeros(3, 6), torch.zeros(4))
