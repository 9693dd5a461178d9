"""SwiGLU and the GELUs on the GPU against their references: odd sizes, recreated outputs, rows alone and beside NaN."""

import pytest
import torch

from dynadapt.ops.activation import KINDS

from .compare import DEVICE, DTYPES, Out, acts, check, poisoned, run, skip_without_gpu

SIZES = [(1, 1), (1, 35), (63, 33), (3, 600)]


def backward_arguments(n, f, kind, dtype, again=True):
    h = acts(n, f * (1 + (kind == "swiglu")), dtype=dtype) * 3
    return [acts(n, f, dtype=dtype), h, kind, Out(poisoned(*h.shape)), Out(poisoned(n, f)) if again else None]


def check_both(n, f, kind, dtype):
    arguments = backward_arguments(n, f, kind, dtype)
    (y,) = check("activation_forward", [arguments[1], kind, Out(poisoned(n, f))], dtype)
    _, again = check("activation_backward", arguments, dtype)
    assert torch.equal(y, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, f", SIZES)
def test_both_ways(n, f, kind, dtype):
    check_both(n, f, kind, dtype)
    check("activation_backward", backward_arguments(n, f, kind, dtype, again=False), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_far_out_values(kind):
    h = torch.tensor([[-3e38, -1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4, 1e18, 3e38]])
    full = torch.cat([h, torch.ones_like(h)], 1) if kind == "swiglu" else h
    outputs = [Out(poisoned(*full.shape)), Out(poisoned(1, 10))]
    dh, y = run("activation_backward", [torch.ones_like(h), full, kind, *outputs], h.dtype)
    assert torch.equal(y[0, 4:].cpu(), h[0, 4:]) and (y[0, :3] == 0).all()
    assert torch.equal(dh[0, 5:8].cpu(), torch.ones(3)) and (dh[0, 1:3] == 0).all()
    assert torch.isfinite(dh[0, :10]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stand_alone(kind):
    dy, h, _, dh, y = backward_arguments(10, 37, kind, torch.float32)
    whole = run("activation_backward", [dy, h, kind, dh, y], torch.float32)
    alone = run("activation_backward", [dy[6:7], h[6:7], kind, Out(dh.tensor[6:7]), Out(y.tensor[6:7])], torch.float32)
    h[5] = float("nan")
    dirty = run("activation_backward", [dy, h, kind, dh, y], torch.float32)
    others = torch.arange(10) != 5
    for w, a, d in zip(whole, alone, dirty):
        assert torch.equal(w[6:7], a)
        assert torch.equal(w[others], d[others]) and d[5].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_may_overwrite_its_input(kind):
    from dynadapt.kernels.activation import activation_backward

    dy, h = (t.to(DEVICE) for t in backward_arguments(9, 70, kind, torch.float32)[:2])
    apart = torch.empty_like(h)
    activation_backward(dy, h, kind, apart)
    activation_backward(dy, h, kind, h)
    assert torch.equal(h, apart)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"activation_forward: h has shape \[2, 4\], accepted is \[2, 8\]"):
        run("activation_forward", [torch.zeros(2, 4), "swiglu", Out(torch.zeros(2, 4))], torch.float32)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("n, f", [(512, 1536), (4096, 8192)])
@pytest.mark.parametrize("kind", KINDS)
def test_real_sizes(n, f, kind):
    check_both(n, f, kind, torch.bfloat16)
