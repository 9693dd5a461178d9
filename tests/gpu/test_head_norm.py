"""The norm of query and key heads against its reference."""

import pytest
from op_cases import make_case, rows_stand_alone, same_bits

from dynadapt.bench.cases.head_norm import head_norm_backward, head_norm_forward
from dynadapt.kernels import head_norm as kernels

from .compare import DTYPES, check, each, real_sizes, run

SIZES = [(1, 1, 1, 4), (63, 3, 1, 20), (100, 4, 2, 64), (40, 2, 2, 17), (29, 3, 1, 128)]  # rows, query heads, kv heads, head size
REAL = [(4096, 16, 8, 128), (1000, 9, 3, 64)]
REAL_TOGETHER = [(4096, 16, 16, 128), (1000, 40, 8, 128)]
LEARNS = ("qk", "k", "")


@each(head_norm_forward, SIZES)
def test_forward(case):
    check(case)


@each(head_norm_backward, [(*size, learns) for size in SIZES for learns in LEARNS])
def test_backward(case):
    check(case)


@each(head_norm_forward, [(40, 2, 2, 17, together, True) for together in (False, True)], DTYPES[-1:])
def test_wide_weights(case):
    check(case)


@each(head_norm_backward, [(40, 2, 2, 17, "qk", together, True) for together in (False, True)], DTYPES[-1:])
def test_backward_of_wide_weights(case):
    check(case)


@each(head_norm_forward, [(*size, True) for size in SIZES])
def test_heads_together(case):
    check(case)


@each(head_norm_backward, [(*size, learns, True) for size in SIZES for learns in LEARNS])
def test_backward_of_heads_together(case):
    check(case)


@each(head_norm_backward, [(30, 3, 1, 20, "qk", True)])
def test_few_programs_sum_many_rows(case, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    assert same_bits(check(case), run(case))


@each(head_norm_backward, [(100, 4, 2, 64)])
def test_few_programs_sum_many_tiles(case, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    assert same_bits(check(case), run(case))


@each([head_norm_forward, head_norm_backward], [(60, 4, 2, 20)])
def test_rows_stand_alone(case):
    rows_stand_alone(case, run, whole=False)


@each(head_norm_backward, [(60, 4, 2, 20, "qk", True)])
def test_rows_of_heads_together_stand_alone(case):
    rows_stand_alone(case, run, whole=False)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"head_norm_forward: qkv has shape \[100, 160\], accepted is \[any, 80\]"):
        run(make_case(head_norm_forward, (100, 4, 2, 20)).change(hq=2, hkv=1))
    case = make_case(head_norm_forward, (10, 4, 2, 20, True))
    with pytest.raises(ValueError, match=r"head_norm_forward: k_weight has shape \[80\], accepted is \[40\]"):
        run(case.change(k_weight=case["q_weight"]))


@real_sizes(head_norm_forward, REAL + [(*size, True) for size in REAL_TOGETHER])
def test_real_sizes(case):
    check(case)


@real_sizes(
    head_norm_backward,
    [(*size, learns) for size in REAL for learns in LEARNS] + [(*size, learns, True) for size in REAL_TOGETHER for learns in LEARNS],
)
def test_backward_at_real_sizes(case):
    check(case)
