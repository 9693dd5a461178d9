"""The gates of the delta rule against their reference."""

import pytest
import torch
from op_cases import gates_at_their_ends, make_case, rows_stand_alone, same_bits

from dynadapt.bench.cases.delta_gates import delta_gates_backward, delta_gates_forward
from dynadapt.kernels import delta_gates as kernels

from .compare import check, each, real_sizes, run

OPS = [delta_gates_forward, delta_gates_backward]
SIZES = [(1, 1), (63, 3), (100, 20)]  # rows, heads


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(delta_gates_backward, [(*size, False) for size in SIZES[1:]])
def test_backward_to_the_inputs_alone(case):
    check(case)


@each(OPS, [(9, 5)], [torch.float32])
def test_gates_at_their_ends(case):
    check(gates_at_their_ends(case))


@each(delta_gates_backward, [(100, 20)], [torch.float32])
def test_few_programs_sum_many_tiles(case, monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 128)
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    assert same_bits(check(case), run(case))


@each(OPS, [(60, 20)])
def test_rows_stand_alone(case):
    rows_stand_alone(case, run, whole=False)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"delta_gates_forward: b has shape \[4, 2\], accepted is \[4, 3\]"):
        run(make_case(delta_gates_forward, (4, 3)).change(b=torch.zeros(4, 2)))


@real_sizes(OPS, [(4096, 32), (1000, 48)])
def test_real_sizes(case):
    check(case)
