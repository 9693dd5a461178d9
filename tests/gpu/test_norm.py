"""RMSNorm and LayerNorm on the GPU against their references: odd sizes, optional arguments, rows alone and beside NaN."""

import pytest
import torch

from dynadapt.kernels import norm as kernels
from dynadapt.ops import norm

from .compare import DEVICE, DTYPES, Out, acts, check, poisoned, run, skip_without_gpu

SIZES = [(1, 1), (1, 576), (63, 17), (100, 65)]


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


def backward_arguments(n, h, kind, dtype, dres=True, learns=True, again=True):
    x = acts(n, h, dtype=dtype) + 0.5
    weight, bias, stat = acts(h, dtype=dtype), acts(h, dtype=dtype) if kind == "layer" else None, torch.empty(n, 2)
    norm.norm_forward(x, None, weight, bias, 1e-5, kind, None, torch.empty_like(x), stat)
    sums = [Out(torch.randn(h), wide=True) if learns else None for _ in range(2)]
    return [
        acts(n, h, dtype=dtype),
        x,
        weight,
        stat,
        kind,
        acts(n, h, dtype=dtype) if dres else None,
        Out(poisoned(n, h)),
        *sums,
        bias,
        Out(poisoned(n, h)) if again else None,
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
@pytest.mark.parametrize("n, h", SIZES)
def test_forward(n, h, kind, dtype):
    check("norm_forward", forward_arguments(n, h, kind, dtype), dtype)
    check("norm_forward", forward_arguments(n, h, kind, dtype, delta=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
@pytest.mark.parametrize("n, h", [size for size in SIZES if size[1] > 1])
def test_backward(n, h, kind, dtype, monkeypatch):
    check("norm_backward", backward_arguments(n, h, kind, dtype, dres=False, learns=False, again=False), dtype)
    monkeypatch.setattr(kernels, "GROUPS", 40)  # several rows a program
    check("norm_backward", backward_arguments(n, h, kind, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", norm.KINDS)
def test_backward_writes_the_same_output_again(kind, dtype):
    forward = forward_arguments(20, 77, kind, dtype)
    res, y, stat = run("norm_forward", forward, dtype)
    dy, dx, again = acts(20, 77, dtype=dtype), Out(poisoned(20, 77)), Out(poisoned(20, 77))
    arguments = [dy, res, forward[2], stat, kind, None, dx, None, None, forward[3], again]
    assert torch.equal(run("norm_backward", arguments, dtype)[1], y)


@pytest.mark.parametrize("kind", norm.KINDS)
def test_rows_stand_alone(kind):
    arguments = backward_arguments(10, 37, kind, torch.float32, learns=False)

    def row(a):
        if isinstance(a, Out):
            return Out(a.tensor[6:7])
        return a[6:7] if isinstance(a, torch.Tensor) and a.dim() == 2 else a

    whole = run("norm_backward", arguments, torch.float32)
    alone = run("norm_backward", [row(a) for a in arguments], torch.float32)
    arguments[1][5] = float("nan")
    dirty = run("norm_backward", arguments, torch.float32)
    others = torch.arange(10) != 5
    for w, a, d in zip(whole, alone, dirty):
        assert torch.equal(w[6:7], a)
        assert torch.equal(w[others], d[others]) and d[5].isnan().any()


def test_gradient_may_overwrite_its_input():
    dy, res, weight, stat, kind, dres, _, dweight, dbias, _, _ = (
        a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in backward_arguments(10, 70, "rms", torch.float32)
    )
    apart = torch.empty_like(dy)
    kernels.norm_backward(dy, res, weight, stat, kind, dres, apart, None, None)
    kernels.norm_backward(dy, res, weight, stat, kind, dres, dres, None, None)
    assert torch.equal(dres, apart)


def test_errors_name_the_argument():
    x, w, stat = torch.zeros(4, 6), torch.zeros(6), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"norm_forward: res is missing, a tensor is needed where delta is given"):
        kernels.norm_forward(x, x, w, None, 1e-5, "rms", None, x, stat)
    with pytest.raises(ValueError, match=r"norm_backward: dweight has shape \[5\] .* accepted is \[6\]"):
        kernels.norm_backward(x, x, w, stat, "rms", None, x, w[:5], None)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("n, h, kind", [(512, 576, "rms"), (4096, 4096, "rms"), (4096, 16384, "rms"), (4096, 768, "layer")])
def test_real_sizes(n, h, kind):
    check("norm_forward", forward_arguments(n, h, kind, torch.bfloat16), torch.bfloat16)
    check("norm_backward", backward_arguments(n, h, kind, torch.bfloat16), torch.bfloat16)
