"""The linear cross-entropy's Triton forms against the reference."""

import pytest
import torch

from dynadapt.kernels import choices, row_chunks
from dynadapt.kernels import cross_entropy as kernels
from dynadapt.kernels import cross_entropy_fused as fused_kernels
from dynadapt.ops.matrix import DenseMatrix

from .compare import DTYPES, Out, Weight, acts, check, poisoned, run, skip_without_gpu

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, about rows that are not finite
# rows N, hidden H, vocabulary V
CASES = [(1, 5, 3), (33, 33, 256), (31, 65, 257), (11, 130, 783)]


def arguments(case, dtype, gradient=True, weights=True, spread=1.0):
    n, hidden, vocabulary = case
    targets = torch.randint(0, vocabulary, (n,))
    targets[::7] = -100
    if n > 3:
        targets[1], targets[2], targets[3] = 0, vocabulary - 1, vocabulary // 2
    head = (spread * torch.randn(vocabulary, hidden) / hidden**0.5).to(dtype)
    return [
        acts(n, hidden, dtype=dtype),
        Weight(head),
        targets,
        torch.rand(n) if weights else None,
        Out(poisoned(n), wide=True),
        Out(poisoned(n), wide=True),
        Out(poisoned(n, hidden)) if gradient else None,
    ]


@pytest.fixture(params=["chunked", "split rows", "fused", "fused split"])
def form(request, monkeypatch):
    """Which form serves: the chunked one with one program a row or with the vocabulary over programs; the fused one with
    and without the vocabulary split over programs."""
    fused, split = "fused" in request.param, "split" in request.param
    monkeypatch.setattr(fused_kernels, "splits", lambda *tiles: 3 if split else 1)
    monkeypatch.setattr(kernels, "BLOCK", 512)
    monkeypatch.setattr(kernels, "SPLIT_BELOW", 10**9 if split else 0)
    with choices.force("fused" if fused else "split"):
        yield request.param


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_score_and_gradient(case, dtype, spread, form):
    # Logits of 20 standard deviations reach 80, where one float32 rounding moves a probability by 5e-6.
    check("cross_entropy", arguments(case, dtype, weights=spread == 1.0, spread=spread), dtype, slack=max(1.0, spread / 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_score_alone_is_the_same_score(dtype, form):
    call = arguments(CASES[2], dtype)
    nll, lse, _ = run("cross_entropy", call, dtype)
    nll_alone, lse_alone = run("cross_entropy", call[:-1] + [None], dtype)
    assert torch.equal(nll, nll_alone) and torch.equal(lse, lse_alone)


def test_rows_in_one_program_and_over_programs_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 512)
    call, results = arguments(CASES[3], torch.float32), []
    for limit in (0, 10**9):
        monkeypatch.setattr(kernels, "SPLIT_BELOW", limit)
        results.append(run("cross_entropy", call, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_change_nothing(dtype, form, monkeypatch):
    """131 rows in two chunks: what a row computes does not depend on where chunks end."""
    call = arguments((131, 9, 70), dtype)
    monkeypatch.setattr(row_chunks, "BUDGET", 1)
    assert row_chunks.chunks(131, 70, dtype) == [(0, 128), (128, 131)]
    check("cross_entropy", call, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unscored_rows_are_zero_and_rows_are_independent(dtype, form):
    call = arguments((20, 65, 577), dtype)
    together = run("cross_entropy", call, dtype)
    assert (together[0][::7] == 0).all() and (together[2][::7] == 0).all()
    rows = slice(13, 19)
    alone = [call[0][rows], call[1], call[2][rows], call[3][rows], *(Out(o.tensor[rows], o.wide) for o in call[4:])]
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 2e-2}[dtype]  # products may be summed in another order for fewer rows
    for whole, part in zip(together, run("cross_entropy", alone, dtype)):
        torch.testing.assert_close(whole[rows], part, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_row_stays_alone(dtype, bad, form):
    call = arguments((20, 33, 300), dtype)
    clean = run("cross_entropy", call, dtype)
    call[0][17] = bad
    call[0][14] = float("nan")  # not scored
    dirty = run("cross_entropy", call, dtype)
    others = torch.ones(20, dtype=torch.bool)
    others[[14, 17]] = False
    for a, b in zip(clean, dirty):
        assert torch.equal(a[others], b[others])
        assert not torch.isfinite(b[17]).any()
    assert dirty[0][14] == 0 and (dirty[2][14] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_neither_overflow_nor_vanish(dtype, form):
    nll, lse, dh = run("cross_entropy", arguments((20, 32, 500), dtype, spread=200.0), dtype)
    assert torch.isfinite(nll).all() and torch.isfinite(lse).all() and torch.isfinite(dh).all()
    assert (nll >= -1e-3 * lse.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_far_below_the_others_and_one_that_is_certain(dtype, form):
    """Tiles whose probabilities vanish beside the rest, and a target of which softmax - 1 is small."""
    h = torch.zeros(3, 16)
    h[:, 0] = torch.tensor([1.0, 1.0, 0.02])
    head = torch.randn(700, 16) / 100
    head[:, 0] = 0
    head[5, 0], head[650, 0] = 500.0, -500.0  # row 2: logits of 10 and -10
    targets = torch.tensor([650, 5, 5])
    score = [Out(poisoned(3), wide=True), Out(poisoned(3), wide=True)]
    call = [h.to(dtype), Weight(head.to(dtype)), targets, None, *score, Out(poisoned(3, 16))]
    check("cross_entropy", call, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_common_part_of_the_head_does_not_drown_the_gradient(dtype, form):
    """Head rows share a large part, so softmax W and W_target nearly cancel; real heads do that."""
    torch.manual_seed(3)
    head = (0.1 * torch.randn(1011, 64) + 2 * torch.randn(64)).to(dtype)
    h, targets = acts(9, 64, dtype=dtype), torch.randint(1011, (9,))
    call = [h, Weight(head), targets, None, Out(poisoned(9), wide=True), Out(poisoned(9), wide=True), Out(poisoned(9, 64))]
    truth = run("cross_entropy", call, torch.float64, "reference")[2]
    error = lambda g: float((g.double() - truth).norm() / truth.norm())  # noqa: E731
    plain = run("cross_entropy", call, dtype, "reference")[2]
    assert error(run("cross_entropy", call, dtype)[2]) <= 1.5 * error(plain) + 1e-7


def gradient_arguments(case, dtype, accumulate):
    h, head, targets, weights, *_ = arguments(case, dtype)
    lse = torch.logsumexp(h.double() @ head.tensor.double().t(), 1).float()
    start = torch.randn(case[2], case[1]) if accumulate else poisoned(case[2], case[1])
    return [h, head, targets, weights, lse, Out(start, wide=True), accumulate]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [(1, 5, 3), (63, 33, 256), (130, 65, 67)], ids=str)
def test_weight_gradient(case, dtype, accumulate, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 512)
    monkeypatch.setattr(row_chunks, "BUDGET", 1)  # 130 rows are two chunks
    check("cross_entropy_weight_gradient", gradient_arguments(case, dtype, accumulate), dtype, slack=2)


def test_no_rows(form):
    run("cross_entropy", arguments((0, 5, 30), torch.float32), torch.float32)
    (dW,) = run("cross_entropy_weight_gradient", gradient_arguments((0, 5, 30), torch.float32, False), torch.float32)
    assert (dW == 0).all()


def test_the_vocabulary_is_split_until_the_gpu_is_full():
    for tiles in (1, 20, 32, 56, 100, 112, 140, 256, 1000):
        count = fused_kernels.splits(tiles, 501, 132)
        programs = tiles * count
        assert count <= 16 and (programs / (132 * -(-programs // 132)) >= 0.85 or count * tiles < 132)
    assert fused_kernels.splits(1, 3, 132) == 1 and fused_kernels.splits(256, 501, 132) == 1


def test_errors_name_the_argument():
    head, out = DenseMatrix(torch.zeros(10, 4)), torch.zeros(3)
    with pytest.raises(ValueError, match=r"cross_entropy: targets is torch.int32 \[3\], accepted is torch.int64 \[3\]"):
        kernels.cross_entropy(torch.zeros(3, 4), head, torch.zeros(3, dtype=torch.int32), None, out, out, None)
    with pytest.raises(ValueError, match=r"h has shape \[3, 5\], accepted is \[any, 4\]"):
        kernels.cross_entropy(torch.zeros(3, 5), head, torch.zeros(3, dtype=torch.int64), None, out, out, None)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("case", [(512, 576, 49152), (100, 768, 50257), (1500, 2048, 128256)], ids=str)
@pytest.mark.parametrize("form", choices.FORMS)
def test_real_sizes(case, form):
    with choices.force(form):
        check("cross_entropy", arguments(case, torch.bfloat16), torch.bfloat16)
        check("cross_entropy", arguments(case, torch.bfloat16, gradient=False), torch.bfloat16)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("case", [(512, 576, 49152), (700, 2048, 128256)], ids=str)
def test_weight_gradient_at_real_sizes(case):
    check("cross_entropy_weight_gradient", gradient_arguments(case, torch.bfloat16, True), torch.bfloat16)
