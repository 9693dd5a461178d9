"""The gated norm against its reference."""

import pytest
from op_cases import make_case, rows_stand_alone, same_bits

from dynadapt.bench.cases.gated_norm import gated_norm_backward, gated_norm_forward
from dynadapt.kernels import gated_norm as kernels

from .compare import check, each, real_sizes, run

OPS = [gated_norm_forward, gated_norm_backward]
SIZES = [(1, 1, 4), (63, 3, 20), (40, 2, 17)]  # rows, heads, head size
REAL = [(4096, 32, 128), (1000, 9, 64)]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(gated_norm_backward, [(100, 4, 64)])
def test_few_programs_sum_many_tiles(case, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    assert same_bits(check(case), run(case))


@each(OPS, [(60, 4, 20)])
def test_rows_stand_alone(case):
    rows_stand_alone(case, run, whole=False)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"gated_norm_forward: x has 24 columns, accepted is a multiple of d, 7"):
        run(make_case(gated_norm_forward, (4, 3, 8)).change(d=7))


@real_sizes(OPS, REAL)
def test_real_sizes(case):
    check(case)
