"""The gated norm against its reference."""

import pytest
import torch
from op_cases import check, each, rows_stand_alone, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.gated_norm import gated_norm_backward, gated_norm_forward

OPS = [gated_norm_forward, gated_norm_backward]
SIZES = [(1, 1, 4), (63, 3, 20), (100, 4, 64), (40, 2, 17)]  # rows, heads, head size


@each(OPS, SIZES)
def test_both_ways(case):
    check(case)


@each(gated_norm_backward, [(*size, False) for size in SIZES])
def test_backward_to_the_inputs_alone(case):
    check(case)


@each(OPS, [(100, 4, 20)])
def test_threads_and_rows(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case, whole=False)


def test_errors_name_the_argument():
    x, rstd = torch.zeros(4, 24), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"gated_norm_forward: x has 24 columns, accepted is a multiple of d, 7"):
        _C.gated_norm_forward(x, x, torch.zeros(7), 1e-6, 7, x.clone(), rstd)
    with pytest.raises(ValueError, match=r"weight has shape \[7\], accepted is \[8\]"):
        _C.gated_norm_forward(x, x, torch.zeros(7), 1e-6, 8, x.clone(), rstd)
