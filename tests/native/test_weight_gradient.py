"""The gradient of a weight's rows and their scores against their references, at odd sizes, and independent of threads."""

import pytest
import torch
from op_cases import check, each, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.weight_gradient import row_scores, weight_gradient

# rows N, outputs O, inputs K, chosen rows (None: all)
SIZES = [(1, 3, 5, None), (63, 70, 33, None), (100, 130, 65, 13), (512, 96, 192, 96), (77, 1, 31, 1), (130, 260, 64, 200)]


@each(weight_gradient, [(*size, accumulate) for size in SIZES for accumulate in (False, True)])
def test_weight_gradient(case):
    check(case)


@each(row_scores, [size[:3] for size in SIZES])
def test_row_scores(case):
    check(case)


@each(weight_gradient, [(*SIZES[5], True)])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


@each(row_scores, [(100, 300, 33)])
def test_threads_change_no_bit_of_the_scores(case):
    same_bits_at_any_threads(case)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"weight_gradient: rows\[0\] is 4, accepted is 0 to 3"):
        _C.weight_gradient(torch.zeros(3, 4), torch.zeros(3, 2), torch.tensor([4], dtype=torch.int32), torch.zeros(1, 2), False)
