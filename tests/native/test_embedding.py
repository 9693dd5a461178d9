"""Token embedding and the scatter of its gradient against their references."""

import pytest
import torch

from dynadapt import _C

from .compare import DTYPES, Out, acts, assert_threads_change_nothing, check, poisoned


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, h", [(1, 1), (63, 20), (100, 577)])
def test_both_ways(n, h, dtype):
    tokens = torch.randint(0, 50, (n,))
    positions = torch.arange(n) % 9
    table, position_table = acts(50, h, dtype=dtype), acts(9, h, dtype=dtype)
    check("embedding_forward", [tokens, table, None, None, Out(poisoned(n, h))], dtype)
    check("embedding_forward", [tokens, table, position_table, positions, Out(poisoned(n, h))], dtype)
    check("embedding_backward", [tokens, acts(n, h, dtype=dtype), Out(torch.randn(50, h), wide=True)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_rows(dtype):
    n, h = 100, 200
    tokens = torch.randint(0, 7, (n,))
    positions = torch.arange(n) % 9
    backward = [tokens, acts(n, h, dtype=dtype), Out(torch.randn(50, h), wide=True)]
    assert_threads_change_nothing("embedding_backward", backward, dtype)
    forward = [tokens, acts(50, h, dtype=dtype), acts(9, h, dtype=dtype), positions, Out(poisoned(n, h))]
    assert_threads_change_nothing("embedding_forward", forward, dtype)


def test_errors_name_the_token():
    table, out = torch.zeros(5, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"embedding_forward: tokens\[1\] is 5, accepted is 0 to 4"):
        _C.embedding_forward(torch.tensor([0, 5]), table, None, None, out)
    with pytest.raises(ValueError, match=r"embedding_backward: tokens\[0\] is -1, accepted is 0 to 4"):
        _C.embedding_backward(torch.tensor([-1, 2]), out, table)
    with pytest.raises(ValueError, match=r"positions is given without position_table"):
        _C.embedding_forward(torch.tensor([0, 1]), table, None, torch.tensor([0, 1]), out)
