"""Weight gradients and row scores in Triton against their references: odd sizes, chosen rows, split tokens, strides."""

import pytest
import torch
from op_cases import make_case

from dynadapt.bench.cases.weight_gradient import row_scores, weight_gradient
from dynadapt.kernels import weight_gradient as kernels

from .compare import DTYPES, check, each, real_sizes, run

# rows N, outputs O, inputs K, chosen rows (None: all)
SIZES = [(1, 3, 5, None), (63, 70, 33, None), (100, 130, 65, 13), (77, 1, 31, 1), (130, 128, 64, 100)]
REAL = [
    (4096, 8192, 2048, None),
    (4096, 8192, 2048, 820),
    (512, 576, 576, None),
    (512, 1536, 576, 154),
    (16384, 512, 2048, 52),
    (3000, 2048, 8192, None),
]


@each(weight_gradient, [(*size, accumulate) for size in SIZES for accumulate in (False, True)])
def test_against_reference(case):
    check(case)


@each(weight_gradient, [(*size, accumulate) for size in SIZES[1:3] for accumulate in (False, True)])
def test_split_tokens_and_gathered_columns(case, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT_TOKENS", 16)
    monkeypatch.setattr(kernels, "GATHER_ELEMENTS", 1)
    plan = kernels.plan(case.dtype, case.row_count, *case["dW"].shape, kernels.SMALLEST)
    assert plan.shares > 1 or case.row_count <= plan.constexprs["BT"]
    check(case)


@pytest.mark.parametrize("tiles", kernels.TILES[torch.bfloat16], ids=lambda c: str(c[0]))
@each(weight_gradient, [(100, 130, 70)], DTYPES[-1:])  # bfloat16, where float32 would need twice the shared memory that there is
def test_every_tile(case, tiles, monkeypatch):
    monkeypatch.setitem(kernels.TILES, case.dtype, [tiles])
    check(case)


@each(weight_gradient, [(20, 75, 40)], [torch.float32])
def test_more_row_tiles_than_a_group(case, monkeypatch):
    monkeypatch.setattr(kernels, "GROUP", 2)
    monkeypatch.setitem(kernels.TILES, torch.float32, [((16, 16, 16), 4, 2)])
    check(case)


def test_a_bad_column_stays_alone():
    case = make_case(weight_gradient, (60, 70, 33))
    clean, dirty = run(case)["dW"], run(case.spoil("dy", (17, 5)))["dW"]
    others = torch.arange(70) != 5
    assert torch.equal(clean[others], dirty[others])
    assert dirty[5].isnan().all()


@pytest.mark.parametrize("tokens", [32, kernels.SCORE_TOKENS])
@each(row_scores, [size[:3] for size in SIZES])
def test_row_scores(case, tokens, monkeypatch):
    monkeypatch.setattr(kernels, "SCORE_TOKENS", tokens)
    check(case)


def test_errors_name_the_argument():
    dy, x, dW = torch.zeros(3, 4), torch.zeros(3, 2), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"weight_gradient: dW has shape \[4, 2\], accepted is \[1, 2\]"):
        kernels.weight_gradient(dy, x, torch.tensor([3], dtype=torch.int32), dW, False)
    with pytest.raises(ValueError, match=r"weight_gradient: x has 2 rows, accepted is the number of dy's, 3"):
        kernels.weight_gradient(dy, x[:2], None, dW, False)
    with pytest.raises(ValueError, match=r"row_scores: x has shape"):
        kernels.row_scores(dy, x, torch.zeros(3))


@real_sizes(weight_gradient, REAL, DTYPES)
def test_real_sizes(case):
    check(case)


@real_sizes(row_scores, [size[:3] for size in REAL], DTYPES)
def test_row_scores_at_real_sizes(case):
    check(case)
