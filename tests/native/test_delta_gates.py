"""The gates of the delta rule against their reference."""

import pytest
import torch
from op_cases import check, each, gates_at_their_ends, make_case, rows_stand_alone, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.delta_gates import delta_gates_backward, delta_gates_forward

OPS = [delta_gates_forward, delta_gates_backward]
SIZES = [(1, 1), (63, 3), (100, 17), (40, 32)]  # rows, heads


@each(OPS, SIZES)
def test_both_ways(case):
    check(case)


@each(delta_gates_backward, [(*size, False) for size in SIZES])
def test_backward_to_the_inputs_alone(case):
    check(case)


@each(OPS, [(9, 5)], [torch.float32])
def test_gates_at_their_ends(case):
    check(gates_at_their_ends(case))


@each(OPS, [(100, 20)])
def test_threads_and_rows(case):
    same_bits_at_any_threads(case)
    rows_stand_alone(case, whole=False)


@each(delta_gates_backward, [(10, 6, False)], [torch.float32])
def test_gradients_may_overwrite_their_inputs(case):
    given = [case[name].clone() for name in ("dg", "dbeta", "a", "b", "a_log", "dt_bias")]
    apart = [torch.empty(10, 6), torch.empty(10, 6)]
    _C.delta_gates_backward(*given, *apart, None, None)
    _C.delta_gates_backward(*given, given[2], given[3], None, None)
    assert torch.equal(given[2], apart[0]) and torch.equal(given[3], apart[1])


def test_errors_name_the_argument():
    good = make_case(delta_gates_forward, (4, 3)).arguments
    call = lambda **change: _C.delta_gates_forward(**{**good, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match=r"delta_gates_forward: b has shape \[4, 2\], accepted is \[4, 3\]"):
        call(b=torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"a_log has shape \[4\], accepted is \[3\]"):
        call(a_log=torch.zeros(4))
