"""SwiGLU, GEGLU, GLU and the two GELUs against their references, over the whole range of float32."""

import pytest
import torch
from op_cases import DTYPES, check, each, make_case, rows_stand_alone, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.activation import activation_backward, activation_forward
from dynadapt.ops import activation
from dynadapt.ops.activation import GATED

SIZES = [(n, f, kind) for n, f in [(1, 35), (1, 1536), (63, 33), (100, 70)] for kind in activation.KINDS]


@each(activation_backward, SIZES)
def test_both_ways(case):
    h, kind = case["h"], case["kind"]
    y = check(make_case(activation_forward, (*case["dy"].shape, kind), case.dtype).change(h=h))["y"]
    assert torch.equal(check(case)["y"], y)
    check(case.change(y=None))


@each(activation_backward, [(10, 70, kind) for kind in activation.KINDS], [torch.float32])
def test_gradient_may_overwrite_its_input(case):
    dy, h, kind, apart, first = case.arguments.values()
    second = first.clone()
    _C.activation_backward(dy, h, kind, apart, first)
    _C.activation_backward(dy, h, kind, h, second)
    assert torch.equal(h, apart) and torch.equal(first, second)


@pytest.mark.parametrize("kind", activation.KINDS)
def test_every_magnitude(kind):
    """Element by element: within 4e-6 of the true value, relatively, until float32 runs out of exponent."""
    h = torch.cat([torch.linspace(-12, 12, 40001), torch.logspace(-30, 1, 1000), -torch.logspace(-30, 1, 1000)])[:, None]
    full = torch.cat([h, torch.ones_like(h)], 1) if kind in GATED else h
    y, truth = torch.empty_like(h), torch.empty_like(h, dtype=torch.float64)
    _C.activation_forward(full, kind, y)
    wide = h.double()
    if kind == "swiglu":
        truth = wide / (1 + torch.exp(-wide))
    elif kind == "glu":
        truth = torch.sigmoid(wide)
    elif kind == "gelu":
        truth = wide * 0.5 * torch.special.erfc(-wide / 2**0.5)
    else:
        truth = wide * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))
    visible = truth.abs() > 1e-30
    relative = ((y.double() - truth).abs() / truth.abs().clamp(min=1e-300))[visible]
    # e^(-u) of a large u carries u's rounding: |u| ulps.
    assert relative.max() < 2e-5 and relative[(wide.abs() < 3)[visible]].max() < 2e-6


@pytest.mark.parametrize("kind", activation.KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_out_values(kind, dtype):
    h = torch.tensor([[-3e38, -1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4, 1e18]]).to(dtype)
    full = torch.cat([h, torch.ones_like(h)], 1) if kind in GATED else h
    y, dh = torch.empty_like(h), torch.empty_like(full)
    _C.activation_forward(full, kind, y)
    _C.activation_backward(torch.ones_like(h), full, kind, dh)
    assert torch.isfinite(y).all()
    far = (h[0] > 0).to(dtype) + 0.5 * (h[0] == 0) if kind == "glu" else h[0]
    assert torch.equal(y[0, 4:], far[4:]) and (y[0, :3] == 0).all()
    assert torch.equal(dh[0, 5:8], torch.full_like(dh[0, 5:8], kind != "glu")) and (dh[0, 1:3] == 0).all()


@each([activation_forward, activation_backward], [(100, 37, kind) for kind in activation.KINDS])
def test_threads_and_rows(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case, whole=False)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"activation_forward: kind is relu, accepted is swiglu, gelu_tanh, gelu, geglu_tanh, glu"):
        _C.activation_forward(torch.zeros(2, 4), "relu", torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"activation_forward: h has shape \[2, 4\], accepted is \[2, 8\]"):
        _C.activation_forward(torch.zeros(2, 4), "swiglu", torch.zeros(2, 4))
