"""The norm of query and key heads against its reference."""

import pytest
import torch

from dynadapt import _C
from dynadapt.ops import head_norm

from .compare import DTYPES, Out, acts, assert_rows_stand_alone, assert_threads_change_nothing, check, poisoned

CASES = [(1, 1, 1, 4), (63, 3, 1, 20), (100, 4, 2, 64), (40, 2, 2, 17)]  # rows, query heads, kv heads, head size


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


def backward_arguments(n, hq, hkv, d, dtype, learns=True):
    qkv, q_weight, k_weight, eps, *_, out, rstd = forward_arguments(n, hq, hkv, d, dtype)
    head_norm.head_norm_forward(qkv, q_weight, k_weight, eps, hq, hkv, d, out.tensor, rstd.tensor)
    sums = [Out(torch.randn(d), wide=True) if learns else None for _ in range(2)]
    return [acts(*qkv.shape, dtype=dtype), qkv, q_weight, k_weight, rstd.tensor, hq, hkv, d, Out(poisoned(*qkv.shape)), *sums]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways(case, dtype):
    check("head_norm_forward", forward_arguments(*case, dtype), dtype)
    check("head_norm_backward", backward_arguments(*case, dtype), dtype)
    check("head_norm_backward", backward_arguments(*case, dtype, learns=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_rows(dtype):
    for op, make in (("head_norm_forward", forward_arguments), ("head_norm_backward", backward_arguments)):
        arguments = make(100, 4, 2, 20, dtype)
        assert_threads_change_nothing(op, arguments, dtype)
        assert_rows_stand_alone(op, arguments, dtype, 100, 41)


def test_errors_name_the_argument():
    qkv, w, rstd = torch.zeros(4, 24), torch.zeros(8), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"head_norm_forward: qkv has shape \[4, 24\], accepted is \[any, 32\]"):
        _C.head_norm_forward(qkv, w, w, 1e-6, 2, 1, 8, qkv, rstd)
    with pytest.raises(ValueError, match=r"hq, hkv, d are 1, 0, 8, accepted is at least 1 of each"):
        _C.head_norm_forward(qkv, w, w, 1e-6, 1, 0, 8, qkv, rstd)
