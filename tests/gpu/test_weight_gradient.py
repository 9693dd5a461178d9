"""Weight gradients and row scores in Triton against their references: odd sizes, chosen rows, split tokens, strides."""

import pytest
import torch

from dynadapt.kernels import weight_gradient as kernels

from .compare import DTYPES, Out, acts, check, poisoned, run, skip_without_gpu

# rows N, outputs O, inputs K, chosen rows (None: all)
CASES = [(1, 3, 5, None), (63, 70, 33, None), (100, 130, 65, 13), (77, 1, 31, 1), (130, 128, 64, 100)]
REAL = [
    (4096, 8192, 2048, None),
    (4096, 8192, 2048, 820),
    (512, 576, 576, None),
    (512, 1536, 576, 154),
    (16384, 512, 2048, 52),
    (3000, 2048, 8192, None),
]


def arguments(case, accumulate, dtype=torch.float32):
    n, out, k, chosen = case
    rows = None if chosen is None else torch.randperm(out)[:chosen].int()
    shape = (chosen or out, k)
    dW = torch.randn(shape) if accumulate else poisoned(*shape)
    return [acts(n, out + 7, dtype=dtype)[:, :out], acts(n, k + 3, dtype=dtype)[:, :k], rows, Out(dW, wide=True), accumulate]


def score_arguments(case, dtype=torch.float32):
    dy, x, *_ = arguments(case, False, dtype)
    return [dy, x, Out(poisoned(case[1]), wide=True)]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_reference(case, dtype, accumulate):
    check("weight_gradient", arguments(case, accumulate), dtype)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_split_tokens_and_gathered_columns(case, dtype, accumulate, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT_TOKENS", 16)
    monkeypatch.setattr(kernels, "GATHER_ELEMENTS", 1)
    plan = kernels.plan(dtype, case[0], case[3] or case[1], case[2], kernels.SMALLEST)
    assert plan.shares > 1 or case[0] <= plan.constexprs["BT"]
    check("weight_gradient", arguments(case, accumulate), dtype)


@pytest.mark.parametrize("tiles", kernels.TILES[torch.bfloat16], ids=lambda c: str(c[0]))
def test_every_tile(tiles, monkeypatch):
    dtype = DTYPES[-1]  # bfloat16 on a GPU, where float32 would need twice the shared memory that there is
    monkeypatch.setitem(kernels.TILES, dtype, [tiles])
    check("weight_gradient", arguments((100, 130, 70, None), False), dtype)


def test_more_row_tiles_than_a_group(monkeypatch):
    monkeypatch.setattr(kernels, "GROUP", 2)
    monkeypatch.setitem(kernels.TILES, torch.float32, [((16, 16, 16), 4, 2)])
    check("weight_gradient", arguments((20, 75, 40, None), False), torch.float32)


def test_a_bad_column_stays_alone():
    call = arguments((60, 70, 33, None), False)
    (clean,) = run("weight_gradient", call, torch.float32)
    call[0][17, 5] = float("nan")
    (dirty,) = run("weight_gradient", call, torch.float32)
    others = torch.arange(70) != 5
    assert torch.equal(clean[others], dirty[others])
    assert dirty[5].isnan().all()


@pytest.mark.parametrize("tokens", [32, kernels.SCORE_TOKENS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_row_scores(case, dtype, tokens, monkeypatch):
    monkeypatch.setattr(kernels, "SCORE_TOKENS", tokens)
    check("row_scores", score_arguments(case), dtype)


def test_errors_name_the_argument():
    dy, x, dW = torch.zeros(3, 4), torch.zeros(3, 2), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"weight_gradient: dW has shape \[4, 2\], accepted is \[1, 2\]"):
        kernels.weight_gradient(dy, x, torch.tensor([3], dtype=torch.int32), dW, False)
    with pytest.raises(ValueError, match=r"weight_gradient: x has 2 rows, accepted is the number of dy's, 3"):
        kernels.weight_gradient(dy, x[:2], None, dW, False)
    with pytest.raises(ValueError, match=r"row_scores: x has shape"):
        kernels.row_scores(dy, x, torch.zeros(3))


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", REAL, ids=str)
def test_real_sizes(case, dtype):
    check("weight_gradient", arguments(case, False, torch.bfloat16), dtype)
    check("row_scores", score_arguments(case, torch.bfloat16), dtype)
