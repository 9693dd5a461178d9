"""Bias gradients in Triton against their reference."""

import pytest
import torch
from op_cases import make_case, same_bits

from dynadapt.bench.cases.bias_gradient import bias_gradient
from dynadapt.kernels import bias_gradient as kernels

from .compare import check, each, real_sizes, run


@each(bias_gradient, [(1, 1), (63, 17), (100, 577), (200, 40)])
def test_against_reference(case):
    check(case)


@pytest.mark.parametrize("programs", [1, 3])
@each(bias_gradient, [(200, 300)], [torch.float32])
def test_few_programs_sum_many_rows(case, programs, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    assert same_bits(check(case), run(case))


def test_a_bad_column_stays_alone():
    db = run(make_case(bias_gradient, (50, 70)).spoil("dy", (3, 20)))["db"]
    assert db[20].isnan() and db[torch.arange(70) != 20].isfinite().all()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"bias_gradient: db has shape \[4\], accepted is \[6\], contiguous"):
        kernels.bias_gradient(torch.zeros(3, 6), torch.zeros(4))
    with pytest.raises(ValueError, match=r"bias_gradient: dy has strides \[1, 3\]"):
        kernels.bias_gradient(torch.zeros(6, 3).t(), torch.zeros(6))


@real_sizes(bias_gradient, [(512, 960), (32768, 4096), (4096, 28672)])
def test_real_sizes(case):
    assert same_bits(check(case), run(case))
