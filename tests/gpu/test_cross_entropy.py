"""The linear cross-entropy's Triton forms against the reference."""

import pytest
import torch
from op_cases import make_case, same_bits

from dynadapt.bench.cases.cross_entropy import (
    adapted_cross_entropy,
    adapted_cross_entropy_gradient,
    cross_entropy,
    cross_entropy_weight_gradient,
    distillation,
)
from dynadapt.kernels import choices, row_adapters, row_chunks
from dynadapt.kernels import cross_entropy as kernels
from dynadapt.kernels import cross_entropy_fused as fused_kernels
from dynadapt.ops.matrix import DenseMatrix

from .compare import check, each, real_sizes, run

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, about rows that are not finite
# rows N, hidden H, vocabulary V
SIZES = [(1, 5, 3), (33, 33, 256), (31, 65, 257), (11, 130, 783)]


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


@each(cross_entropy, [(*size, True, spread == 1.0, spread) for size in SIZES for spread in (1.0, 20.0)])
def test_score_and_gradient(case, form):
    check(case)


CAPPED = [{"n": n, "hidden": hidden, "vocabulary": vocabulary, "softcap": 3.0} for n, hidden, vocabulary in SIZES[1:]]


@pytest.mark.parametrize("split_below", [0, 10**9])
@each([cross_entropy, cross_entropy_weight_gradient, distillation], CAPPED)
def test_capped_logits(case, split_below, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 512)
    monkeypatch.setattr(kernels, "SPLIT_BELOW", split_below)
    check(case)


@each(cross_entropy, SIZES[2:3])
def test_score_alone_is_the_same_score(case, form):
    both, alone = run(case), run(case.change(dh=None))
    assert torch.equal(both["nll"], alone["nll"]) and torch.equal(both["lse"], alone["lse"])


@each(cross_entropy, SIZES[3:], [torch.float32])
def test_rows_in_one_program_and_over_programs_give_the_same_bits(case, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 512)
    results = []
    for limit in (0, 10**9):
        monkeypatch.setattr(kernels, "SPLIT_BELOW", limit)
        results.append(run(case))
    assert same_bits(*results)


@each(cross_entropy, [(131, 9, 70)])
def test_chunks_change_nothing(case, form, monkeypatch):
    """131 rows in two chunks: what a row computes does not depend on where chunks end."""
    monkeypatch.setattr(row_chunks, "BUDGET", 1)
    assert row_chunks.chunks(torch.empty(131, 16, dtype=case.dtype), 70) == [(0, 128), (128, 131)]
    check(case)


@pytest.mark.parametrize(
    "rows, hidden, words, expected",
    [
        (512, 576, 49152, 512),
        (32768, 576, 49152, 4736),  # 44 x 3 tiles fill 132 multiprocessors, of which the buffer has room for 42 x 3; in equal chunks
        (4096, 2048, 128256, 2048),  # 16 x 8 tiles
        (4096, 4096, 128256, 1024),  # 8 x 16 tiles
        (4096, 8192, 32000, 4096),  # 4 x 32 tiles, eight times that
    ],
)
def test_chunks_fill_the_card(rows, hidden, words, expected):
    h = torch.empty(rows, hidden, dtype=torch.bfloat16, device="meta")
    found = row_chunks.chunks(h, words)
    assert found[0] == (0, expected) and found[-1][1] == rows
    assert row_chunks.padded_rows(h, words) * words * 2 <= 2 * row_chunks.BUDGET


@each(cross_entropy, [(20, 65, 577)])
def test_unscored_rows_are_zero_and_rows_are_independent(case, form):
    together = run(case)
    assert (together["nll"][::7] == 0).all() and (together["dh"][::7] == 0).all()
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 2e-2}[case.dtype]  # products may be summed in another order for fewer rows
    for name, part in run(case.cut(slice(13, 19))).items():
        torch.testing.assert_close(together[name][13:19], part, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(cross_entropy, [(20, 33, 300)])
def test_a_bad_row_stays_alone(case, bad, form):
    clean, dirty = run(case), run(case.spoil("h", 17, bad).spoil("h", 14))  # the latter is not scored
    others = torch.ones(20, dtype=torch.bool)
    others[[14, 17]] = False
    for name, t in clean.items():
        assert torch.equal(t[others], dirty[name][others])
        assert not torch.isfinite(dirty[name][17]).any()
    assert dirty["nll"][14] == 0 and (dirty["dh"][14] == 0).all()


@each(cross_entropy, [(20, 32, 500, True, True, 200.0)])
def test_large_logits_neither_overflow_nor_vanish(case, form):
    found = run(case)
    assert all(torch.isfinite(t).all() for t in found.values())
    assert (found["nll"] >= -1e-3 * found["lse"].abs()).all()


@each(cross_entropy, [(3, 16, 700, True, False)])
def test_a_target_far_below_the_others_and_one_that_is_certain(case, form):
    """Tiles whose probabilities vanish beside the rest, and a target of which softmax - 1 is small."""
    h, head = torch.zeros(3, 16), torch.randn(700, 16) / 100
    h[:, 0] = torch.tensor([1.0, 1.0, 0.02])
    head[:, 0] = 0
    head[5, 0], head[650, 0] = 500.0, -500.0  # row 2: logits of 10 and -10
    check(case.change(h=h.to(case.dtype), head=head.to(case.dtype), targets=torch.tensor([650, 5, 5])))


@each(cross_entropy, [(9, 64, 1011, True, False)])
def test_a_common_part_of_the_head_does_not_drown_the_gradient(case, form):
    """Head rows share a large part, so softmax W and W_target nearly cancel; real heads do that."""
    torch.manual_seed(3)
    head = (0.1 * torch.randn(1011, 64) + 2 * torch.randn(64)).to(case.dtype)
    case = case.change(head=head, h=torch.randn(9, 64).to(case.dtype), targets=torch.randint(1011, (9,)))
    truth = run(case, backend="reference", dtype=torch.float64)["dh"]
    error = lambda found: float((found["dh"].double() - truth).norm() / truth.norm())  # noqa: E731
    # In float32 both are what a logit of some tens loses in a sum over H, in whichever order a GPU makes it: 1.6 to 4.1 times on an H200.
    times = 1.5 if case.dtype == torch.bfloat16 else 6.0
    assert error(run(case)) <= times * error(run(case, backend="reference")) + 1e-7


@each(cross_entropy_weight_gradient, [(*size, add) for size in [(1, 5, 3), (63, 33, 256), (130, 65, 67)] for add in (False, True)])
def test_weight_gradient(case, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 512)
    monkeypatch.setattr(row_chunks, "BUDGET", 1)  # 130 rows are two chunks
    case.slack = 2
    check(case)


@each(distillation, [(*size, k, True, spread == 1.0, spread) for size, k in zip(SIZES, (1, 3, 40, 5)) for spread in (1.0, 20.0)])
def test_distillation(case, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 512)
    found = check(case)
    assert (found["kl"][::7] == 0).all() and (found["dh"][::7] == 0).all()
    alone = run(case.change(dh=None))
    assert all(torch.equal(found[name], alone[name]) for name in ("nll", "lse", "kl"))


@each(distillation, [(131, 9, 70, 4)])
def test_distillation_in_chunks(case, monkeypatch):
    monkeypatch.setattr(row_chunks, "BUDGET", 1)
    check(case)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(distillation, [(20, 33, 300, 6)])
def test_a_bad_row_of_a_distillation_stays_alone(case, bad):
    clean, dirty = run(case), run(case.spoil("h", 17, bad).spoil("h", 14))  # the latter is not scored
    others = torch.ones(20, dtype=torch.bool)
    others[[14, 17]] = False
    for name, t in clean.items():
        assert torch.equal(t[others], dirty[name][others])
        assert not torch.isfinite(dirty[name][17]).all()
    assert dirty["kl"][14] == 0 and (dirty["dh"][14] == 0).all()


# rows, hidden, vocabulary, rank, streams: blocks of rows of one stream and of several, streams over blocks
ADAPTED = [(1, 5, 3, 1, 1), (63, 33, 256, 4, 3), (100, 65, 257, 16, 1), (140, 96, 600, 8, 4), (77, 130, 1283, 33, 2), (5, 64, 999, 3, 5)]


@pytest.fixture
def small(monkeypatch):
    """Blocks of which these sizes have several: of the softmax, and shares of columns."""
    monkeypatch.setattr(kernels, "BLOCK", 512)
    monkeypatch.setattr(row_adapters, "SHARE", 256)


@each(adapted_cross_entropy, [(*size, True, below) for size in ADAPTED for below in (True, False)])
def test_adapted_score(case, small):
    found = check(case)
    assert (found["nll"][::7] == 0).all() and (found["dU"][::7] == 0).all()
    alone = run(case.change(dh=None, dU=None))
    assert all(torch.equal(found[name], alone[name]) for name in ("u", "nll", "lse"))


@each(adapted_cross_entropy_gradient, [(*size, accumulate) for size in ADAPTED for accumulate in (False, True)])
def test_adapters_gradient(case, small):
    case.slack = 2
    check(case)


CAPPED_ADAPTERS = [{"n": n, "hidden": h, "vocabulary": v, "rank": r, "streams": s, "softcap": 3.0} for n, h, v, r, s in ADAPTED[1:4]]


@each([adapted_cross_entropy, adapted_cross_entropy_gradient], CAPPED_ADAPTERS)
def test_capped_logits_of_adapters(case, small):
    case.slack = 2
    check(case)


@each([adapted_cross_entropy, adapted_cross_entropy_gradient], [(300, 9, 70, 3, 2)])
def test_adapters_in_chunks(case, small, monkeypatch):
    """A stream over three chunks of rows and one within the last: gradients of the chunks add up."""
    monkeypatch.setattr(row_chunks, "BUDGET", 1)
    case.slack = 2
    check(case)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(adapted_cross_entropy, [(70, 33, 300, 4, 3)])
def test_a_bad_adapter_stays_with_its_stream(case, bad, small):
    clean, slots = run(case), case["slots"]
    others = slots != slots[30]
    assert others.any() and not others.all()
    A = case["A"].clone()
    A[slots[30].long()] = bad
    dirty = run(case.change(A=A))
    assert all(torch.equal(t[others], dirty[name][others]) for name, t in clean.items())
    scored = ~others & (case["targets"] >= 0)
    assert not torch.isfinite(dirty["nll"][scored]).any() and not torch.isfinite(dirty["dh"][scored]).any()


@each(adapted_cross_entropy_gradient, [(150, 65, 300, 5, 4)])
def test_each_adapter_learns_from_its_own_rows(case, small):
    together, slots = run(case), case["slots"]
    bad = run(case.spoil("h", (slots == slots[80]).nonzero()[0, 0]))
    for slot in dict.fromkeys(slots.tolist()):
        assert any(not torch.isfinite(t[slot]).all() for t in bad.values()) == (slot == int(slots[80]))
        if slot != int(slots[80]):
            assert same_bits({n: t[slot] for n, t in together.items()}, {n: t[slot] for n, t in bad.items()})


def test_no_rows(form):
    run(make_case(adapted_cross_entropy, (0, 5, 30, 2)))
    run(make_case(cross_entropy, (0, 5, 30)))
    assert (run(make_case(cross_entropy_weight_gradient, (0, 5, 30)))["dW"] == 0).all()


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
    with pytest.raises(ValueError, match=r"distillation: ids is torch.int64 \[3, 2\] and logp \[3, 1\], accepted are torch.int64 \[3, K\]"):
        teacher = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 1)
        kernels.distillation(torch.zeros(3, 4), head, torch.zeros(3, dtype=torch.int64), *teacher, None, out, out, out, None)
    A, Bt, slots, targets = (
        torch.zeros(2, 1, 4),
        torch.zeros(2, 1, 10),
        torch.zeros(3, dtype=torch.int32),
        torch.zeros(3, dtype=torch.int64),
    )
    adapted = lambda slots, Bt, u: kernels.adapted_cross_entropy(  # noqa: E731
        torch.zeros(3, 4), head, A, Bt, slots, 1.0, targets, None, u, out, out, None, None
    )
    with pytest.raises(ValueError, match=r"adapted_cross_entropy: slots is torch.int64 \[3\], accepted is contiguous torch.int32 \[3\]"):
        adapted(slots.long(), Bt, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"adapted_cross_entropy: u has shape \[3, 2\].*accepted is \[3, 1\] in row order"):
        adapted(slots, Bt, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"adapted_cross_entropy: Bt has shape \[2, 1, 9\].*accepted is \[2, 1, 10\], packed"):
        adapted(slots, torch.zeros(2, 1, 9), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"h has shape \[3, 5\], accepted is \[any, 4\]"):
        kernels.cross_entropy(torch.zeros(3, 5), head, torch.zeros(3, dtype=torch.int64), None, out, out, None)


REAL = [(512, 576, 49152), (100, 768, 50257), (1500, 2048, 128256)]


@pytest.mark.parametrize("named", choices.FORMS)
@real_sizes(cross_entropy, [(*size, gradient) for size in REAL for gradient in (True, False)])
def test_real_sizes(case, named):
    with choices.force(named):
        check(case)


@real_sizes(distillation, [(*size, 64) for size in REAL])
def test_distillation_at_real_sizes(case):
    check(case)


@real_sizes([adapted_cross_entropy, adapted_cross_entropy_gradient], [(512, 576, 49152, 16, 1), (700, 2048, 128256, 16, 3)])
def test_adapters_at_real_sizes(case):
    case.slack = 2
    check(case)


@real_sizes(cross_entropy_weight_gradient, [(512, 576, 49152, True), (700, 2048, 128256, True)])
def test_weight_gradient_at_real_sizes(case):
    check(case)
