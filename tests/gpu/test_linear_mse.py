"""The linear read-out with squared error in Triton against its reference."""

import pytest
import torch

from dynadapt.kernels import linear_mse as kernels

from .compare import DTYPES, Out, acts, check, poisoned, run, skip_without_gpu


def arguments(n, h, dtype, every=True):
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
@pytest.mark.parametrize("n, h", [(1, 1), (63, 17), (100, 300), (1040, 5)])
def test_against_reference(n, h, dtype):
    # dbias is one sum of terms that cancel: its error is that of the terms.
    check("linear_mse", arguments(n, h, dtype), dtype, slack=4)
    check("linear_mse", arguments(n, h, dtype, every=False), dtype)
    unweighted = [None if i == 4 else a for i, a in enumerate(arguments(n, h, dtype))]  # rows of padding have an error, too
    check("linear_mse", unweighted, dtype, slack=4)


@pytest.mark.parametrize("missing", [7, 8, 9])
def test_each_gradient_may_be_absent(missing):
    call = arguments(50, 65, torch.float32)
    whole = run("linear_mse", call, torch.float32)
    rest = run("linear_mse", [None if i == missing else a for i, a in enumerate(call)], torch.float32)
    del whole[missing - 5]
    assert all(torch.equal(a, b) for a, b in zip(whole, rest))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_stand_alone_and_bad_ones_stay_alone(dtype):
    n, bad = 100, 41
    call = arguments(n, 65, dtype)
    whole = run("linear_mse", call, dtype)
    cut = lambda t: t[:bad] if isinstance(t, torch.Tensor) and len(t) == n else t  # noqa: E731
    short = run("linear_mse", [Out(cut(a.tensor), a.wide) if isinstance(a, Out) else cut(a) for a in call], dtype)
    call[0][bad] = float("nan")
    dirty = run("linear_mse", call, dtype)
    others = torch.arange(n) != bad
    for i in range(3):  # pred, loss, dh
        assert torch.equal(whole[i][:bad], short[i]) and torch.equal(whole[i][others], dirty[i][others])
        assert not torch.isfinite(dirty[i][bad]).any()


def test_errors_name_the_argument():
    h, v = torch.zeros(4, 6), torch.zeros(4)
    with pytest.raises(ValueError, match=r"linear_mse: weight has shape \[4\], accepted is \[6\]"):
        kernels.linear_mse(h, v, None, v, None, v, v, None, None, None)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("n, h", [(512, 576), (20000, 4096)])
def test_real_sizes(n, h):
    check("linear_mse", arguments(n, h, torch.bfloat16), torch.bfloat16, slack=4)
