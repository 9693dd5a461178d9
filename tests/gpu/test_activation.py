"""SwiGLU, GEGLU, GLU and the GELUs on the GPU against their references: odd sizes, recreated outputs, rows alone and beside NaN."""

import pytest
import torch
from op_cases import make_case, rows_stand_alone

from dynadapt.bench.cases.activation import activation_backward, activation_forward
from dynadapt.kernels import activation as kernels
from dynadapt.ops.activation import GATED, KINDS

from .compare import DEVICE, check, each, real_sizes, run


def both_ways(case):
    h, kind = case["h"], case["kind"]
    y = check(make_case(activation_forward, (*case["dy"].shape, kind), case.dtype).change(h=h))["y"]
    assert torch.equal(check(case)["y"], y)


@each(activation_backward, [(n, f, kind) for n, f in [(1, 1), (1, 35), (63, 33), (3, 600)] for kind in KINDS])
def test_both_ways(case):
    both_ways(case)
    check(case.change(y=None))


@pytest.mark.parametrize("kind", KINDS)
def test_far_out_values(kind):
    h = torch.tensor([[-3e38, -1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4, 1e18, 3e38]])
    full = torch.cat([h, torch.ones_like(h)], 1) if kind in GATED else h
    dh, y = run(make_case(activation_backward, (1, 10, kind)).change(dy=torch.ones_like(h), h=full)).values()
    far = (h[0] > 0) + 0.5 * (h[0] == 0) if kind == "glu" else h[0]
    assert torch.equal(y[0, 4:], far[4:]) and (y[0, :3] == 0).all()
    assert torch.equal(dh[0, 5:8], torch.full((3,), float(kind != "glu"))) and (dh[0, 1:3] == 0).all()
    assert torch.isfinite(dh[0, :10]).all()


@each(activation_backward, [(10, 37, kind) for kind in KINDS], [torch.float32])
def test_rows_stand_alone(case):
    rows_stand_alone(case, run)


@each(activation_backward, [(9, 70, kind, False) for kind in KINDS], [torch.float32])
def test_gradient_may_overwrite_its_input(case):
    dy, h = case["dy"].to(DEVICE), case["h"].to(DEVICE)
    apart = torch.empty_like(h)
    kernels.activation_backward(dy, h, case["kind"], apart)
    kernels.activation_backward(dy, h, case["kind"], h)
    assert torch.equal(h, apart)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"activation_forward: h has shape \[2, 4\], accepted is \[2, 8\]"):
        run(make_case(activation_forward, (2, 4)).change(h=torch.zeros(2, 4)))


@real_sizes(activation_backward, [(n, f, kind) for n, f in [(512, 1536), (4096, 8192)] for kind in KINDS])
def test_real_sizes(case):
    both_ways(case)
