"""RMSNorm and LayerNorm against their references: odd sizes, optional arguments, batching, threads, errors."""

import pytest
import torch
from op_cases import check, each, rows_stand_alone, run, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.norm import norm_backward, norm_forward
from dynadapt.ops import norm

SIZES = [(n, h, kind) for n, h in [(1, 1), (1, 576), (63, 17), (100, 65), (512, 96)] for kind in norm.KINDS]


@each(norm_forward, [(*size, delta) for size in SIZES for delta in (True, False)])
def test_forward(case):
    check(case)


@each(norm_backward, [(*size, *all_or_none) for size in SIZES if size[1] > 1 for all_or_none in ((True,) * 3, (False,) * 3)])
def test_backward(case):
    check(case)


@each(norm_forward, [(*size, True, True) for size in SIZES], [torch.bfloat16])
def test_forward_of_a_wide_weight(case):
    check(case)


@each(
    norm_backward,
    [(*size, *all_or_none, True) for size in SIZES if size[1] > 1 for all_or_none in ((True,) * 3, (False,) * 3)],
    [torch.bfloat16],
)
def test_backward_of_a_wide_weight(case):
    check(case)


@each(norm_forward, [(3, 40, "rms", False, True)], [torch.bfloat16])
def test_a_wide_weight_is_not_rounded(case):
    """bfloat16 has nothing between 1 and 1.0078."""
    weights = torch.ones(40), torch.full((40,), 1.003), torch.full((40,), 1.003).bfloat16().float()
    plain, wide, rounded = (run(case.change(weight=weight))["y"] for weight in weights)
    assert torch.equal(plain, rounded) and not torch.equal(plain, wide)


@each(norm_forward, SIZES)
def test_backward_writes_the_same_output_again(case):
    found, again, dx = run(case), torch.full_like(case["y"], float("nan")), torch.empty_like(case["y"])
    _C.norm_backward(case["x"], found["res"], case["weight"], found["stat"], case["kind"], None, dx, None, None, case["bias"], again)
    assert torch.equal(again, found["y"])


@each([norm_forward, norm_backward], [(100, 77, kind) for kind in norm.KINDS])
def test_threads_and_rows(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case, whole=False)


@each(norm_backward, [(10, 70)], [torch.float32])
def test_gradient_may_overwrite_its_input(case):
    dy, res, weight, stat, kind, dres, apart = list(case.arguments.values())[:7]
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
