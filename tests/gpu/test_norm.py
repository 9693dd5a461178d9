"""RMSNorm and LayerNorm on the GPU against their references: odd sizes, optional arguments, rows alone and beside NaN."""

import pytest
import torch
from op_cases import rows_stand_alone

from dynadapt.bench.cases import materialise
from dynadapt.bench.cases.norm import norm_backward, norm_forward
from dynadapt.kernels import norm as kernels
from dynadapt.ops import norm

from .compare import DEVICE, DTYPES, check, each, real_sizes, run

SIZES = [(n, h, kind) for n, h in [(1, 1), (1, 576), (63, 17), (100, 65)] for kind in norm.KINDS]
REAL = [(512, 576, "rms"), (4096, 4096, "rms"), (4096, 16384, "rms"), (4096, 768, "layer")]
WIDE = [size for size in SIZES if size[1] > 1]


@each(norm_forward, [(*size, delta) for size in SIZES for delta in (True, False)])
def test_forward(case):
    check(case)


@each(norm_backward, [(*size, False, False, False) for size in WIDE])
def test_backward_to_the_input_alone(case):
    check(case)


@each(norm_backward, WIDE)
def test_backward(case, monkeypatch):
    monkeypatch.setattr(kernels, "GROUPS", 40)  # several rows a program
    check(case)


@each(norm_forward, [(63, 17, "rms", True, True), (5, 576, "layer", False, True)], DTYPES[-1:])
def test_forward_of_a_wide_weight(case):
    check(case)


@each(norm_backward, [(63, 17, "rms", True, True, True, True), (5, 576, "layer", False, False, True, True)], DTYPES[-1:])
def test_backward_of_a_wide_weight(case):
    check(case)


@each(norm_forward, [(20, 77, kind) for kind in norm.KINDS])
def test_backward_writes_the_same_output_again(case):
    found, again, dx = run(case), *(torch.full_like(case["y"], float("nan")).to(DEVICE) for _ in range(2))
    res, weight, stat, bias = (t if t is None else t.to(DEVICE) for t in (found["res"], case["weight"], found["stat"], case["bias"]))
    kernels.norm_backward(torch.ones_like(res), res, weight, stat, case["kind"], None, dx, None, None, bias, again)
    assert torch.equal(again.cpu(), found["y"])


@each(norm_backward, [(10, 37, kind, True, False) for kind in norm.KINDS], [torch.float32])
def test_rows_stand_alone(case):
    rows_stand_alone(case, run, whole=False)


@each(norm_backward, [(10, 70)], [torch.float32])
def test_gradient_may_overwrite_its_input(case):
    dy, res, weight, stat, kind, dres, apart = materialise(case, "triton", device=DEVICE)[:7]
    kernels.norm_backward(dy, res, weight, stat, kind, dres, apart, None, None)
    kernels.norm_backward(dy, res, weight, stat, kind, dres, dres, None, None)
    assert torch.equal(dres, apart)


def test_errors_name_the_argument():
    x, w, stat = torch.zeros(4, 6), torch.zeros(6), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"norm_forward: res is missing, a tensor is needed where delta is given"):
        kernels.norm_forward(x, x, w, None, 1e-5, "rms", None, x, stat)
    with pytest.raises(ValueError, match=r"norm_backward: dweight has shape \[5\] .* accepted is \[6\]"):
        kernels.norm_backward(x, x, w, stat, "rms", None, x, w[:5], None)


@real_sizes([norm_forward, norm_backward], REAL)
def test_real_sizes(case):
    check(case)
