"""Weight gradients and row scores against their references, at odd sizes, and independent of threads."""

import pytest
import torch

from dynadapt import _C

from .compare import DTYPES, Out, acts, check, poisoned, threads_change_no_bit

# rows N, outputs O, inputs K, chosen rows (None: all)
WHOLE = [(1, 3, 5, None), (63, 70, 33, None), (100, 130, 65, 13), (512, 96, 192, 96), (77, 1, 31, 1), (130, 260, 64, 200)]


def weight_arguments(case, dtype, accumulate):
    n, out, k, chosen = case
    rows = None if chosen is None else torch.randperm(out)[:chosen].int()
    dW = torch.randn(chosen or out, k) if accumulate else poisoned(chosen or out, k)
    dy = acts(n, out + 7, dtype=dtype)[:, :out]
    return [dy, acts(n, k, dtype=dtype), rows, Out(dW, wide=True), accumulate]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_weight_gradient(case, dtype, accumulate):
    check("weight_gradient", weight_arguments(case, dtype, accumulate), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_row_scores(case, dtype):
    n, out, k, _ = case
    check("row_scores", [acts(n, out + 7, dtype=dtype)[:, :out], acts(n, k, dtype=dtype), Out(poisoned(out), wide=True)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype):
    calls = {
        "weight_gradient": weight_arguments(WHOLE[5], dtype, True),
        "row_scores": [acts(100, 300, dtype=dtype), acts(100, 33, dtype=dtype), Out(poisoned(300), wide=True)],
    }
    for op, call in calls.items():
        threads_change_no_bit(op, call, dtype)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"weight_gradient: rows\[0\] is 4, accepted is 0 to 3"):
        _C.weight_gradient(torch.zeros(3, 4), torch.zeros(3, 2), torch.tensor([4], dtype=torch.int32), torch.zeros(1, 2), False)
