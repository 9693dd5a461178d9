"""The linear read-out with squared error against its reference."""

import pytest
import torch

from dynadapt import _C

from .compare import DTYPES, Out, acts, assert_rows_stand_alone, assert_threads_change_nothing, check, poisoned


def arguments_of(n, h, dtype, every=True):
    wide = lambda *shape: Out(torch.randn(shape), wide=True)  # noqa: E731
    return [
        acts(n, h, dtype=dtype),
        acts(h, dtype=dtype) / int(h**0.5),
        torch.randn(1) if every else None,
        torch.randn(n),
        torch.rand(n) if every else None,
        Out(poisoned(n), wide=True),
        Out(poisoned(n), wide=True),
        Out(poisoned(n, h)) if every else None,
        wide(h) if every else None,
        wide(1) if every else None,
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, h", [(1, 1), (63, 17), (100, 576)])
def test_against_reference(n, h, dtype):
    # dbias is one sum of terms that cancel: its error is that of the terms.
    check("linear_mse", arguments_of(n, h, dtype), dtype, slack=4)
    check("linear_mse", arguments_of(n, h, dtype, every=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_rows(dtype):
    assert_threads_change_nothing("linear_mse", arguments_of(100, 65, dtype), dtype)
    assert_rows_stand_alone("linear_mse", arguments_of(100, 65, dtype), dtype, 100, 41)


def test_errors_name_the_argument():
    h, v = torch.zeros(4, 6), torch.zeros(4)
    with pytest.raises(ValueError, match=r"linear_mse: weight has shape \[4\], accepted is \[6\]"):
        _C.linear_mse(h, v, None, v, None, v, v, None, None, None)
