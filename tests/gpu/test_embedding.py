"""Token embedding and the sum of its gradient in Triton against their references."""

import pytest
import torch

from dynadapt.kernels import embedding as kernels

from .compare import DTYPES, Out, acts, check, poisoned, run, skip_without_gpu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, h", [(1, 1), (63, 20), (31, 577)])
def test_both_ways(n, h, dtype):
    tokens = torch.randint(0, 50, (n,))
    positions = torch.arange(n) % 9
    table, position_table = acts(50, h, dtype=dtype), acts(9, h, dtype=dtype)
    (rows,) = check("embedding_forward", [tokens, table, None, None, Out(poisoned(n, h))], dtype)
    assert torch.equal(rows.cpu(), table[tokens])
    check("embedding_forward", [tokens, table, position_table, positions, Out(poisoned(n, h))], dtype)
    check("embedding_backward", [tokens, acts(n, h, dtype=dtype), Out(torch.randn(50, h), wide=True)], dtype)


@pytest.mark.parametrize("length", [15, 16, 17, 32, 33])
def test_long_runs_and_their_neighbours(length):
    """Runs that end within a block of places, with it and after it; the last token ends the list."""
    tokens = torch.tensor([3] * length + [4] + [48] * length)[torch.randperm(2 * length + 1)]
    (dtable,) = check("embedding_backward", [tokens, acts(len(tokens), 40), Out(torch.zeros(50, 40), wide=True)], torch.float32)
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[[3, 4, 48]] = False
    assert (dtable[untouched] == 0).all()


def test_a_bad_row_stays_with_its_token():
    tokens, dout = torch.arange(30) % 7, acts(30, 33)
    (clean,) = run("embedding_backward", [tokens, dout, Out(torch.zeros(50, 33), wide=True)], torch.float32)
    dout[10] = float("nan")  # token 3
    (dirty,) = run("embedding_backward", [tokens, dout, Out(torch.zeros(50, 33), wide=True)], torch.float32)
    others = torch.arange(50) != 3
    assert torch.equal(clean[others], dirty[others]) and dirty[3].isnan().all()


def test_errors_name_the_argument():
    tokens, table, out = torch.tensor([0, 1]), torch.zeros(5, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"embedding_forward: table has shape \[5, 4\], accepted is \[any, 3\]"):
        kernels.embedding_forward(tokens, table, None, None, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"positions and position_table go together"):
        kernels.embedding_forward(tokens, table, None, tokens, out)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("n, h", [(512, 576), (16384, 2048)])
def test_real_sizes(n, h):
    tokens = (49152 * torch.rand(n) ** 4).long()  # some often, most never
    dout = acts(n, h, dtype=torch.bfloat16)
    check("embedding_forward", [tokens, acts(49152, h, dtype=torch.bfloat16), None, None, Out(poisoned(n, h))], torch.bfloat16)
    call = [tokens, dout, Out(torch.zeros(49152, h), wide=True)]
    (first,) = check("embedding_backward", call, torch.bfloat16)
    assert torch.equal(first, run("embedding_backward", call, torch.bfloat16)[0])
