"""RMSNorm and LayerNorm against their references: odd sizes, optional arguments, batching, threads, errors."""

import pytest
import torch

from dynadapt import _C
from dynadapt.ops import norm

from .compare import DTYPES, Out, acts, assert_rows_stand_alone, assert_threads_change_nothing, check, poisoned, run

SIZES = [(1, 1), (1, 576), (63, 17), (100, 65), (512, 96)]


def forward_arguments(n, h, kind, dtype, delta=True):
    return [
        acts(n, h, dtype=dtype) + 0.5,
        acts(n, h, dtype=dtype) if delta else None,
        acts(h, dtype=dtype),
        acts(h, dtype=dtype) if kind == "layer" else None,
        1e-5,
        kind,
        Out(poisoned(n, h)) if delta else None,
        Out(poisoned(n, h)),
        Out(poisoned(n, 2), wide=True),
    ]


def backward_arguments(n, h, kind, dtype, dres=True, learns=True):
    x = acts(n, h, dtype=dtype) + 0.5
    weight, stat = acts(h, dtype=dtype), torch.empty(n, 2)
    norm.norm_forward(x, None, weight, None, 1e-5, kind, None, torch.empty_like(x), stat)
    sums = [Out(torch.randn(h), wide=True) if learns else None for _ in range(2)]
    again = [acts(h, dtype=dtype) if kind == "layer" else None, Out(poisoned(n, h))] if learns else []
    return [acts(n, h, dtype=dtype), x, weight, stat, kind, acts(n, h, dtype=dtype) if dres else None, Out(poisoned(n, h)), *sums, *again]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
@pytest.mark.parametrize("n, h", SIZES)
def test_forward(n, h, kind, dtype):
    check("norm_forward", forward_arguments(n, h, kind, dtype), dtype)
    check("norm_forward", forward_arguments(n, h, kind, dtype, delta=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
@pytest.mark.parametrize("n, h", [size for size in SIZES if size[1] > 1])
def test_backward(n, h, kind, dtype):
    check("norm_backward", backward_arguments(n, h, kind, dtype), dtype)
    check("norm_backward", backward_arguments(n, h, kind, dtype, dres=False, learns=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
@pytest.mark.parametrize("n, h", SIZES)
def test_backward_writes_the_same_output_again(n, h, kind, dtype):
    arguments = forward_arguments(n, h, kind, dtype)
    weight, bias, again, dx = arguments[2], arguments[3], poisoned(n, h, dtype=dtype), poisoned(n, h, dtype=dtype)
    res, y, stat = run("norm_forward", arguments, dtype)
    _C.norm_backward(acts(n, h, dtype=dtype), res, weight, stat, kind, None, dx, None, None, bias, again)
    assert torch.equal(again, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
def test_threads_and_rows(kind, dtype):
    forward, backward = (make(100, 77, kind, dtype) for make in (forward_arguments, backward_arguments))
    for op, arguments in (("norm_forward", forward), ("norm_backward", backward)):
        assert_threads_change_nothing(op, arguments, dtype)
        assert_rows_stand_alone(op, arguments, dtype, 100, 41)


def test_gradient_may_overwrite_its_input():
    arguments = backward_arguments(10, 70, "rms", torch.float32)
    dy, res, weight, stat, kind, dres = arguments[:6]
    apart = torch.empty_like(dy)
    _C.norm_backward(dy, res, weight, stat, kind, dres, apart, None, None)
    _C.norm_backward(dy, res, weight, stat, kind, dres, dres, None, None)
    assert torch.equal(dres, apart)


def test_errors_name_the_argument():
    x, w, y, stat = torch.zeros(4, 6), torch.zeros(6), torch.zeros(4, 6), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"norm_forward: kind is batch, accepted is rms, layer"):
        _C.norm_forward(x, None, w, None, 1e-5, "batch", None, y, stat)
    with pytest.raises(ValueError, match=r"norm_forward: res is missing, a tensor is needed where delta is given"):
        _C.norm_forward(x, x, w, None, 1e-5, "rms", None, y, stat)
    with pytest.raises(ValueError, match=r"norm_forward: stat has shape \[4\], accepted is \[4, 2\]"):
        _C.norm_forward(x, None, w, None, 1e-5, "rms", None, y, stat[:, 0].contiguous())
    with pytest.raises(ValueError, match=r"norm_backward: dweight has dtype bfloat16, accepted is float32"):
        _C.norm_backward(x, x, w, stat, "rms", None, y, w.bfloat16(), None)
