"""Bias gradients against their reference."""

import pytest
import torch

from dynadapt import _C

from .compare import DTYPES, Out, acts, assert_threads_change_nothing, check


def arguments_of(n, o, dtype):
    return [acts(n, o + 5, dtype=dtype)[:, :o], Out(torch.randn(o), wide=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, o", [(1, 1), (63, 17), (100, 577), (513, 40)])
def test_against_reference(n, o, dtype):
    check("bias_gradient", arguments_of(n, o, dtype), dtype)
    check("bias_gradient", [acts(n, o, dtype=dtype), Out(torch.zeros(o), wide=True)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype):
    assert_threads_change_nothing("bias_gradient", arguments_of(200, 65, dtype), dtype)


def test_a_bad_column_stays_alone():
    dy, db = torch.randn(50, 70), torch.zeros(70)
    dy[3, 20] = float("nan")
    _C.bias_gradient(dy, db)
    assert db[20].isnan() and db[torch.arange(70) != 20].isfinite().all()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"bias_gradient: db has shape \[4\], accepted is \[6\]"):
        _C.bias_gradient(torch.zeros(3, 6), torch.zeros(4))
