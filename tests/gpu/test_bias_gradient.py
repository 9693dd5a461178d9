"""Bias gradients in Triton against their reference."""

import pytest
import torch

from dynadapt.kernels import bias_gradient as kernels

from .compare import DTYPES, Out, acts, check, run, skip_without_gpu


def arguments_of(n, o, dtype):
    return [acts(n, o + 5, dtype=dtype)[:, :o], Out(torch.randn(o), wide=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, o", [(1, 1), (63, 17), (100, 577), (200, 40)])
def test_against_reference(n, o, dtype):
    check("bias_gradient", arguments_of(n, o, dtype), dtype)


@pytest.mark.parametrize("programs", [1, 3])
def test_few_programs_sum_many_rows(programs, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    arguments = arguments_of(200, 300, torch.float32)
    (first,) = check("bias_gradient", arguments, torch.float32)
    assert torch.equal(first, run("bias_gradient", arguments, torch.float32)[0])


def test_a_bad_column_stays_alone():
    dy = acts(50, 70)
    dy[3, 20] = float("nan")
    (db,) = run("bias_gradient", [dy, Out(torch.zeros(70), wide=True)], torch.float32)
    assert db[20].isnan() and db[torch.arange(70) != 20].isfinite().all()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"bias_gradient: db has shape \[4\], accepted is \[6\], contiguous"):
        kernels.bias_gradient(torch.zeros(3, 6), torch.zeros(4))
    with pytest.raises(ValueError, match=r"bias_gradient: dy has strides \[1, 3\]"):
        kernels.bias_gradient(torch.zeros(6, 3).t(), torch.zeros(6))


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("n, o", [(512, 960), (32768, 4096), (4096, 28672)])
def test_real_sizes(n, o):
    arguments = [acts(n, o, dtype=torch.bfloat16), Out(torch.randn(o), wide=True)]
    (first,) = check("bias_gradient", arguments, torch.bfloat16)
    assert torch.equal(first, run("bias_gradient", arguments, torch.bfloat16)[0])
