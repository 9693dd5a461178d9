"""Token embedding and the sum of its gradient in Triton against their references."""

import pytest
import torch
from op_cases import make_case, same_bits

from dynadapt.bench.cases.embedding import embedding_backward, embedding_forward
from dynadapt.kernels import embedding as kernels

from .compare import check, each, real_sizes, run

SIZES = [(1, 1, 50), (63, 20, 50), (31, 577, 50)]


@each(embedding_forward, SIZES)
def test_rows_of_the_table(case):
    assert torch.equal(check(case)["out"], case["table"][case["tokens"]])


@each(embedding_forward, [(*size, 9) for size in SIZES])
def test_learned_positions(case):
    check(case)


@each(embedding_backward, SIZES)
def test_gradient(case):
    check(case)


@pytest.mark.parametrize("length", [15, 16, 17, 32, 33])
def test_long_runs_and_their_neighbours(length):
    """Runs that end within a block of places, with it and after it; the last token ends the list."""
    tokens = torch.tensor([3] * length + [4] + [48] * length)[torch.randperm(2 * length + 1)]
    case = make_case(embedding_backward, (len(tokens), 40, 50, tokens))
    dtable = check(case)["dtable"]
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[[3, 4, 48]] = False
    assert torch.equal(dtable[untouched], case["dtable"][untouched])


def test_a_bad_row_stays_with_its_token():
    case = make_case(embedding_backward, (30, 33, 50, torch.arange(30) % 7))
    clean, dirty = run(case)["dtable"], run(case.spoil("dout", 10))["dtable"]  # token 3
    others = torch.arange(50) != 3
    assert torch.equal(clean[others], dirty[others]) and dirty[3].isnan().all()


def test_errors_name_the_argument():
    tokens, table, out = torch.tensor([0, 1]), torch.zeros(5, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"embedding_forward: table has shape \[5, 4\], accepted is \[any, 3\]"):
        kernels.embedding_forward(tokens, table, None, None, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"positions and position_table go together"):
        kernels.embedding_forward(tokens, table, None, tokens, out)


@real_sizes([embedding_forward, embedding_backward], [(512, 576, 49152), (16384, 2048, 49152)])
def test_real_sizes(case):
    if case.op == "embedding_backward":
        case = case.change(tokens=(49152 * torch.rand(case.row_count) ** 4).long())  # some often, most never
    assert same_bits(check(case), run(case))
