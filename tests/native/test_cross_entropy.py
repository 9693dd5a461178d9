"""The linear cross-entropy against its reference, and what may not change its result."""

import pytest
import torch
from op_cases import DTYPES, check, each, make_case, rows_stand_alone, run, same_bits, same_bits_at_any_threads

from dynadapt import _C
from dynadapt.bench.cases.cross_entropy import (
    adapted_cross_entropy,
    adapted_cross_entropy_gradient,
    cross_entropy,
    cross_entropy_weight_gradient,
    distillation,
)
from dynadapt.ops import DenseMatrix, resolve

# rows N, hidden H, vocabulary V
SIZES = [(1, 5, 3), (63, 33, 256), (100, 65, 257), (512, 96, 1000), (77, 130, 1283), (5, 64, 4999)]


@each(cross_entropy, [(*size, True, weights, spread) for size in SIZES for weights in (False, True) for spread in (1.0, 20.0)])
def test_score_and_gradient(case):
    check(case)


@each(cross_entropy, SIZES[3:4])
def test_score_alone_is_the_same_score(case):
    both, alone = run(case), run(case.change(dh=None))
    assert torch.equal(both["nll"], alone["nll"]) and torch.equal(both["lse"], alone["lse"])


@each(cross_entropy, [(200, 65, 777)])
def test_unscored_rows_are_zero_and_rows_are_independent(case):
    together = run(case)
    assert (together["nll"][::7] == 0).all() and (together["dh"][::7] == 0).all()
    rows_stand_alone(case)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(cross_entropy, [(60, 33, 600)])
def test_a_bad_row_stays_alone(case, bad):
    rows_stand_alone(case, value=bad)


@each(cross_entropy, [(50, 32, 500, True, True, 200.0)])
def test_large_logits_neither_overflow_nor_vanish(case):
    found = run(case)
    assert all(torch.isfinite(t).all() for t in found.values())
    assert (found["nll"] >= -1e-3 * found["lse"].abs()).all()


@each(cross_entropy_weight_gradient, [(*size, accumulate) for size in SIZES for accumulate in (False, True)])
def test_weight_gradient(case):
    check(case)


@each(
    distillation,
    [(*size, k, True, weights, spread) for size, k in zip(SIZES, (1, 3, 16, 5, 40, 7)) for weights, spread in ((False, 1.0), (True, 20.0))],
)
def test_distillation(case):
    found = check(case)
    assert (found["kl"][::7] == 0).all() and (found["dh"][::7] == 0).all()


@each(distillation, [(100, 65, 257, 9)])
def test_distillation_scores_as_the_score_does_and_rows_are_independent(case):
    found = run(case)
    score = run(make_case(cross_entropy, (100, 65, 257), case.dtype).change(h=case["h"], head=case["head"], targets=case["targets"]))
    alone = run(case.change(dh=None))
    assert torch.equal(found["nll"], score["nll"]) and torch.equal(found["lse"], score["lse"])
    assert all(torch.equal(found[name], alone[name]) for name in ("nll", "lse", "kl"))
    rows_stand_alone(case)


@each(distillation, [(60, 33, 600, 5)])
def test_a_teacher_that_knows_the_target_alone_is_cross_entropy(case):
    targets = case["targets"]
    case = case.change(ids=targets[:, None].clone(), logp=torch.zeros(60, 1))
    other = make_case(cross_entropy, (60, 33, 600), case.dtype).change(**{name: case[name] for name in ("h", "head", "targets", "weights")})
    found, score = run(case), run(other)
    torch.testing.assert_close(found["kl"], score["nll"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["dh"], score["dh"], rtol=1e-2 if case.dtype == torch.bfloat16 else 1e-6, atol=1e-6)


CAPPED = [{"n": n, "hidden": hidden, "vocabulary": vocabulary, "softcap": 3.0} for n, hidden, vocabulary in SIZES[1:5]]


@each([cross_entropy, cross_entropy_weight_gradient, distillation], CAPPED)
def test_capped_logits(case):
    check(case)


@each(cross_entropy, [{"n": 63, "hidden": 33, "vocabulary": 700, "softcap": cap, "spread": 20.0} for cap in (1.0, 30.0, 1e4)])
def test_caps_of_large_logits(case):
    """Logits of 80 under caps that all, some and none of them reach."""
    check(case)


# rows, hidden, vocabulary, rank, streams
ADAPTED = [(1, 5, 3, 1, 1), (63, 33, 256, 4, 3), (100, 65, 257, 16, 1), (160, 96, 1000, 8, 4), (77, 130, 1283, 33, 2), (5, 64, 4999, 3, 5)]


@each(adapted_cross_entropy, [(*size, True, below) for size in ADAPTED for below in (True, False)])
def test_adapted_score(case):
    found = check(case)
    assert (found["nll"][::7] == 0).all() and (found["dU"][::7] == 0).all()


@each(adapted_cross_entropy_gradient, [(*size, accumulate) for size in ADAPTED for accumulate in (False, True)])
def test_adapters_gradient(case):
    check(case)


CAPPED_ADAPTERS = [{"n": n, "hidden": h, "vocabulary": v, "rank": r, "streams": s, "softcap": 3.0} for n, h, v, r, s in ADAPTED[1:4]]


@each([adapted_cross_entropy, adapted_cross_entropy_gradient], CAPPED_ADAPTERS)
def test_capped_logits_of_adapters(case):
    check(case)


@each(adapted_cross_entropy, [(100, 65, 257, 4)])
def test_adapters_that_add_nothing_score_as_the_head_does(case):
    found = run(case.change(Bt=torch.zeros_like(case["Bt"])))
    plain = make_case(cross_entropy, (100, 65, 257), case.dtype).change(
        **{name: case[name] for name in ("h", "head", "targets", "weights")}
    )
    score, alone = run(plain), run(case.change(dh=None, dU=None))
    assert all(torch.equal(found[name], score[name]) for name in ("nll", "lse", "dh")) and not found["dU"].any()
    assert all(torch.equal(alone[name], run(case)[name]) for name in ("u", "nll", "lse"))


@each(adapted_cross_entropy, [(200, 65, 777, 5, 4)])
def test_rows_of_adapters_are_independent(case):
    rows_stand_alone(case, whole=False)


@each(adapted_cross_entropy_gradient, [(150, 65, 700, 5, 4)])
def test_each_adapter_learns_from_its_own_rows(case):
    """To the bit, whoever shares the call; a row that is not finite spoils its own adapter alone."""
    together, slots = run(case), case["slots"]
    bad = run(case.spoil("h", (slots == slots[80]).nonzero()[0, 0]))
    for slot in dict.fromkeys(slots.tolist()):
        rows = (slots == slot).nonzero()[:, 0]
        alone = run(case.cut(slice(int(rows[0]), int(rows[-1]) + 1)))
        assert same_bits({n: t[slot] for n, t in together.items()}, {n: t[slot] for n, t in alone.items()})
        spoilt = any(bad[name][slot].isnan().any() for name in bad)
        assert spoilt == (slot == int(slots[80]))


@each([adapted_cross_entropy, adapted_cross_entropy_gradient], [(150, 65, 1111, 5, 3)])
def test_threads_change_no_bit_of_adapters(case):
    same_bits_at_any_threads(case)


@each([cross_entropy, cross_entropy_weight_gradient, distillation], [(150, 65, 1111)])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


def test_errors_name_the_argument():
    head = _C.PackedMatrix(torch.zeros(10, 4))
    h, out = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match=r"cross_entropy: targets\[2\] is 10, accepted is up to 9"):
        _C.cross_entropy(h, head, torch.tensor([0, 1, 10]), None, out, out.clone(), None)
    ids, logp = torch.tensor([[1, 2], [3, 10], [4, -1]]), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"distillation: ids\[1, 1\] is 10, accepted is up to 9 \(or negative: none\)"):
        _C.distillation(h, head, torch.zeros(3, dtype=torch.int64), ids, logp, None, out, out.clone(), out.clone(), None)
    with pytest.raises(ValueError, match=r"distillation: ids has shape \[3, 0\], accepted is at least 1 token a row"):
        _C.distillation(h, head, torch.zeros(3, dtype=torch.int64), ids[:, :0], logp[:, :0], None, out, out.clone(), out.clone(), None)
    A, Bt, slots = torch.zeros(2, 1, 4), torch.zeros(2, 1, 10), torch.tensor([0, 1, 0], dtype=torch.int32)
    rest = (torch.zeros(3, dtype=torch.int64), None, torch.zeros(3, 1), out, out.clone(), None, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"slots\[2\] is 0, which rows before others have; accepted are rows of one adapter side by side"):
        _C.adapted_cross_entropy(h, head, A, Bt, slots, 1.0, *rest)
    with pytest.raises(ValueError, match=r"dh is given without dU, accepted are both, dU alone, or none"):
        _C.adapted_cross_entropy(h, head, A, Bt, slots.sort().values, 1.0, *rest[:5], torch.zeros(3, 4), None)
    with pytest.raises(ValueError, match=r"softcapped_cross_entropy: softcap is -1, accepted is 0 to"):
        _C.cross_entropy(h, head, torch.zeros(3, dtype=torch.int64), None, out, out.clone(), None, -1.0)
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
