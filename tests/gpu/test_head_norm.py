"""The norm of query and key heads against its reference."""

import pytest
import torch

from dynadapt.kernels import head_norm as kernels
from dynadapt.ops import head_norm

from .compare import DTYPES, Out, acts, check, poisoned, run, skip_without_gpu

CASES = [(1, 1, 1, 4), (63, 3, 1, 20), (100, 4, 2, 64), (40, 2, 2, 17), (29, 3, 1, 128)]  # rows, query heads, kv heads, head size


def forward_arguments(n, hq, hkv, d, dtype):
    width = (hq + 2 * hkv) * d
    return [
        acts(n, width, dtype=dtype),
        acts(d, dtype=dtype),
        acts(d, dtype=dtype),
        1e-6,
        hq,
        hkv,
        d,
        Out(poisoned(n, width)),
        Out(poisoned(n, hq + hkv), wide=True),
    ]


def backward_arguments(n, hq, hkv, d, dtype, learns="qk"):
    qkv, q_weight, k_weight, eps, *_, out, rstd = forward_arguments(n, hq, hkv, d, dtype)
    head_norm.head_norm_forward(qkv, q_weight, k_weight, eps, hq, hkv, d, out.tensor, rstd.tensor)
    sums = [Out(torch.randn(d), wide=True) if name in learns else None for name in "qk"]
    return [acts(*qkv.shape, dtype=dtype), qkv, q_weight, k_weight, rstd.tensor, hq, hkv, d, Out(poisoned(*qkv.shape)), *sums]


def check_both(case, dtype):
    check("head_norm_forward", forward_arguments(*case, dtype), dtype)
    for learns in ("qk", "k", ""):
        check("head_norm_backward", backward_arguments(*case, dtype, learns), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways(case, dtype):
    check_both(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_programs_sum_many_tiles(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    arguments = backward_arguments(100, 4, 2, 64, dtype)
    ours = check("head_norm_backward", arguments, dtype)
    assert all(torch.equal(a, b) for a, b in zip(ours, run("head_norm_backward", arguments, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_stand_alone(dtype):
    """The rows of one token have the same bits without those behind it and with NaN in another."""
    n, bad = 60, 41
    for op, make in (("head_norm_forward", forward_arguments), ("head_norm_backward", backward_arguments)):
        arguments = make(n, 4, 2, 20, dtype) if make is forward_arguments else make(n, 4, 2, 20, dtype, "")
        cut = lambda t: t[:bad].contiguous() if isinstance(t, torch.Tensor) and t.shape[0] == n else t  # noqa: E731
        short = [Out(cut(a.tensor), a.wide) if isinstance(a, Out) else cut(a) for a in arguments]
        dirty = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        dirty[0][bad] = float("nan")
        others = torch.arange(n) != bad
        for whole, cut_short, spoiled in zip(run(op, arguments, dtype), run(op, short, dtype), run(op, dirty, dtype)):
            assert torch.equal(whole[:bad], cut_short)
            assert torch.equal(whole[others], spoiled[others])
            assert not torch.isfinite(spoiled[bad]).all()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"head_norm_forward: qkv has shape \[100, 160\], accepted is \[any, 80\]"):
        arguments = forward_arguments(100, 4, 2, 20, torch.float32)
        arguments[4:6] = 2, 1
        run("head_norm_forward", arguments, torch.float32)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("case", [(4096, 16, 8, 128), (1000, 9, 3, 64)], ids=str)
def test_real_sizes(case):
    check_both(case, torch.bfloat16)
