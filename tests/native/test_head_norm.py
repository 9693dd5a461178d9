"""The norm of query and key heads against its reference."""

import pytest
import torch
from op_cases import check, each, rows_stand_alone, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.head_norm import head_norm_backward, head_norm_forward

OPS = [head_norm_forward, head_norm_backward]
SIZES = [(1, 1, 1, 4), (63, 3, 1, 20), (100, 4, 2, 64), (40, 2, 2, 17)]  # rows, query heads, kv heads, head size


@each(OPS, SIZES)
def test_both_ways(case):
    check(case)


@each(head_norm_backward, [(*size, "") for size in SIZES])
def test_backward_to_the_input_alone(case):
    check(case)


@each(head_norm_forward, [(*size, together, True) for size in SIZES for together in (False, True)], [torch.bfloat16])
def test_wide_weights(case):
    check(case)


@each(
    head_norm_backward,
    [(*size, learns, together, True) for size in SIZES for learns in ("qk", "") for together in (False, True)],
    [torch.bfloat16],
)
def test_backward_of_wide_weights(case):
    check(case)


@each(head_norm_forward, [(*size, True) for size in SIZES])
def test_heads_together(case):
    check(case)


@each(head_norm_backward, [(*size, learns, True) for size in SIZES for learns in ("qk", "k", "")])
def test_backward_of_heads_together(case):
    check(case)


@each(head_norm_backward, [(40, 3, 1, 20, "qk", True)])
def test_threads_and_rows_of_heads_together(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case, whole=False)


@each(OPS, [(100, 4, 2, 20)])
def test_threads_and_rows(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case, whole=False)


def test_errors_name_the_argument():
    qkv, w, rstd = torch.zeros(4, 24), torch.zeros(8), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"head_norm_forward: qkv has shape \[4, 24\], accepted is \[any, 32\]"):
        _C.head_norm_forward(qkv, w, w, 1e-6, 2, 1, 8, qkv, rstd)
    for sizes, name in (
        ((9, 8), r"q_weight has shape \[9\], accepted is \[8\]"),
        ((16, 16), r"k_weight has shape \[16\], accepted is \[8\]"),
    ):
        weights = [torch.zeros(size) for size in sizes]
        with pytest.raises(ValueError, match=f"head_norm_forward: {name}"):
            _C.head_norm_forward(torch.zeros(4, 32), *weights, 1e-6, 2, 1, 8, torch.zeros(4, 32), rstd)
    with pytest.raises(ValueError, match=r"hq, hkv, d are 1, 0, 8, accepted is at least 1 of each"):
        _C.head_norm_forward(qkv, w, w, 1e-6, 1, 0, 8, qkv, rstd)
