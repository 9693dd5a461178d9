"""Token embedding and the scatter of its gradient against their references."""

import pytest
import torch
from op_cases import check, each, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.embedding import embedding_backward, embedding_forward


@each([embedding_forward, embedding_backward], [(1, 1, 50), (63, 20, 50), (100, 577, 50)])
def test_both_ways(case):
    check(case)


@each(embedding_forward, [(1, 1, 50, 9), (63, 20, 50, 9), (100, 577, 50, 9)])
def test_learned_positions(case):
    check(case)


@each([embedding_forward, embedding_backward], [(100, 200, 7)])
def test_threads_change_nothing(case):
    same_bits_at_any_threads(case)


def test_errors_name_the_token():
    table, out = torch.zeros(5, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"embedding_forward: tokens\[1\] is 5, accepted is 0 to 4"):
        _C.embedding_forward(torch.tensor([0, 5]), table, None, None, out)
    with pytest.raises(ValueError, match=r"embedding_backward: tokens\[0\] is -1, accepted is 0 to 4"):
        _C.embedding_backward(torch.tensor([-1, 2]), out, table)
    with pytest.raises(ValueError, match=r"positions is given without position_table"):
        _C.embedding_forward(torch.tensor([0, 1]), table, None, torch.tensor([0, 1]), out)
