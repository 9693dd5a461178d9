"""The linear cross-entropy against its reference, and what may not change its result."""

import pytest
import torch

from dynadapt import _C
from dynadapt.ops import DenseMatrix, resolve

from .compare import DTYPES, Out, Weight, acts, check, poisoned, run, threads_change_no_bit

# rows N, hidden H, vocabulary V
CASES = [(1, 5, 3), (63, 33, 256), (100, 65, 257), (512, 96, 1000), (77, 130, 1283), (5, 64, 4999)]


def arguments(case, dtype, gradient=True, weights=True, spread=1.0):
    n, hidden, vocabulary = case
    targets = torch.randint(0, vocabulary, (n,))
    targets[::7] = -100
    if n > 3:
        targets[1], targets[2], targets[3] = 0, vocabulary - 1, vocabulary // 2
    head = spread * acts(vocabulary, hidden, dtype=dtype) / hidden**0.5
    return [
        acts(n, hidden, dtype=dtype),
        Weight(head),
        targets,
        torch.rand(n) if weights else None,
        Out(poisoned(n), wide=True),
        Out(poisoned(n), wide=True),
        Out(poisoned(n, hidden)) if gradient else None,
    ]


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_score_and_gradient(case, dtype, weights, spread):
    # Logits of 20 standard deviations reach 80, where one float32 rounding moves a probability by 5e-6.
    check("cross_entropy", arguments(case, dtype, weights=weights, spread=spread), dtype, slack=max(1.0, spread / 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_score_alone_is_the_same_score(dtype):
    call = arguments(CASES[3], dtype)
    nll, lse, _ = run("cross_entropy", call, dtype)
    nll_alone, lse_alone = run("cross_entropy", call[:-1] + [None], dtype)
    assert torch.equal(nll, nll_alone) and torch.equal(lse, lse_alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unscored_rows_are_zero_and_rows_are_independent(dtype):
    call = arguments((200, 65, 777), dtype)
    together = run("cross_entropy", call, dtype)
    assert (together[0][::7] == 0).all() and (together[2][::7] == 0).all()
    for rows in (slice(0, 1), slice(13, 100), slice(100, 200)):
        alone = [call[0][rows], call[1], call[2][rows], call[3][rows], *(Out(o.tensor[rows], o.wide) for o in call[4:])]
        for whole, part in zip(together, run("cross_entropy", alone, dtype)):
            assert torch.equal(whole[rows], part)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_row_stays_alone(dtype, bad):
    call = arguments((60, 33, 600), dtype)
    clean = run("cross_entropy", call, dtype)
    call[0][17] = bad
    dirty = run("cross_entropy", call, dtype)
    others = torch.arange(60) != 17
    for a, b in zip(clean, dirty):
        assert torch.equal(a[others], b[others])
        assert not torch.isfinite(b[17]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_neither_overflow_nor_vanish(dtype):
    call = arguments((50, 32, 500), dtype, spread=200.0)
    nll, lse, dh = run("cross_entropy", call, dtype)
    assert torch.isfinite(nll).all() and torch.isfinite(lse).all() and torch.isfinite(dh).all()
    assert (nll >= -1e-3 * lse.abs()).all()


def gradient_arguments(case, dtype, accumulate):
    h, head, targets, weights, *_ = arguments(case, dtype)
    lse = torch.logsumexp(h.double() @ head.tensor.double().t(), 1).float()
    start = torch.randn(case[2], case[1]) if accumulate else poisoned(case[2], case[1])
    return [h, head, targets, weights, lse, Out(start, wide=True), accumulate]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_gradient(case, dtype, accumulate):
    check("cross_entropy_weight_gradient", gradient_arguments(case, dtype, accumulate), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype):
    for op, call in (
        ("cross_entropy", arguments((150, 65, 1111), dtype)),
        ("cross_entropy_weight_gradient", gradient_arguments((150, 65, 1111), dtype, False)),
    ):
        threads_change_no_bit(op, call, dtype)


def test_errors_name_the_argument():
    head = _C.PackedMatrix(torch.zeros(10, 4))
    h, out = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match=r"cross_entropy: targets\[2\] is 10, accepted is up to 9"):
        _C.cross_entropy(h, head, torch.tensor([0, 1, 10]), None, out, out.clone(), None)
    with pytest.raises(ValueError, match=r"targets has dtype int32, accepted is int64"):
        _C.cross_entropy(h, head, torch.zeros(3, dtype=torch.int32), None, out, out.clone(), None)
    with pytest.raises(ValueError, match=r"h has shape \[3, 5\], accepted is \[any, 4\]"):
        _C.cross_entropy(torch.zeros(3, 5), head, torch.zeros(3, dtype=torch.int64), None, out, out.clone(), None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_common_part_of_the_head_does_not_drown_the_gradient(dtype):
    """Head rows share a large part, so softmax W and W_target nearly cancel; real heads do that."""
    torch.manual_seed(3)
    head = 0.1 * torch.randn(20011, 64) + 2 * torch.randn(64)
    h, targets = torch.randn(9, 64), torch.randint(20011, (9,))
    grown = [torch.empty(9), torch.empty(9), torch.empty(9, 64)]

    def gradient(op, kind, matrix):
        nll, lse, dh = (
            t.to(kind) if i == 2 else t.to(torch.float64 if kind == torch.float64 else torch.float32) for i, t in enumerate(grown)
        )
        op(h.to(kind), matrix(head.to(dtype).to(kind)), targets, None, nll, lse, dh)
        return dh.double()

    h = h.to(dtype).float()
    plain = resolve("cross_entropy", "reference", dtype).function
    truth = gradient(plain, torch.float64, DenseMatrix)
    error = lambda g: float((g - truth).norm() / truth.norm())  # noqa: E731
    ours = gradient(_C.cross_entropy, dtype, _C.PackedMatrix)
    assert error(ours) <= 1.5 * error(gradient(plain, dtype, DenseMatrix)) + 1e-7
