"""Weights of single tokens: the loss that is learned from, against autograd in float64, on every backend and both drivers."""

import numpy as np
import pytest
import torch
from helpers import descended, descent_error, linear_weights

from dynadapt import SGD, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.model import random_model, tiny_config

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma3"]
MODELS = {family: random_model(tiny_config(family), seed=1, std=0.1) for family in FAMILIES}
T = 12
NAN, INF = float("nan"), float("inf")


def engine(family="llama", **options):
    options = {"adapt": LoRA(2), "optimizer": SGD(lr=0.5, clip=0.0), "segment": T, "backend": "reference", "dtype": "fp32", **options}
    return Engine(MODELS[family], **options)


def text(rows=2, seed=0, length=T):
    return torch.randint(90, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def drawn(rows=2, seed=5, length=T):
    """Weights of which every third is 0."""
    weights = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) + 0.5
    weights[:, ::3] = 0
    return weights


def masters(e):
    return torch.cat([learner.state.master for learner in e.learners])


def weighted_mean(tokens, weights, first=0):
    """The loss of logits [T, V] of one row [1, T + 1], from input ``first`` on."""

    def loss(logits):
        nll = torch.nn.functional.cross_entropy(logits[first:], tokens[0, first + 1 :], reduction="none")
        return (nll * weights).sum() / (weights != 0).sum()

    return loss


def assert_descended(e, tokens, weights, first=0):
    expected = descended(e.model, tokens, weighted_mean(tokens, weights, first))
    for name, weight in linear_weights(e.learners[0], e.config).items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=descent_error(e.config)), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("static", [False, True])
def test_what_is_learned_is_the_weighted_mean_over_the_tokens_that_count(family, static):
    row, weights, count = text(1), drawn(1)[0].double(), 9
    e = engine(family, adapt=Full(), dtype="fp64", static=static)
    e.step(row, lengths=[count], weights=weights[None])
    assert_descended(e, row[:, : count + 1], weights[:count])


@pytest.mark.parametrize("static", [False, True])
def test_context_that_is_run_again_has_no_weight(static):
    whole, weights = text(1, length=2 * T), drawn(1)[0].double()
    e = engine(adapt=Full(), dtype="fp64", memory=Overlap(5), static=static)
    e.set_lr(0, 0.0)
    e.step(whole[:, : T + 1])
    e.set_lr(0, 0.5)
    e.step(whole[:, T:], weights=weights[None])
    assert_descended(e, whole[:, T - 5 :], weights, first=5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapt", [LoRA(2), RowSparse(0.3), Full(targets="model")], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("dtype,tolerance", [("fp32", 2e-5), ("bf16", 5e-3)])
def test_kernels_learn_what_the_reference_learns(family, adapt, dtype, tolerance):
    same = dict(adapt=adapt, streams=2, optimizer=SGD(lr=0.1, clip=0.0), seed=3)
    if isinstance(adapt, RowSparse):
        same["adapt"] = RowSparse(0.3, "fixed")  # which rows are the largest may hang on a rounding
    truth, native = engine(family, dtype="fp64", **same), engine(family, backend="cpu", dtype=dtype, **same)
    before = masters(truth).clone()
    for e in (truth, native):
        e.step(text(), lengths=[T, 7], weights=drawn())
    moved, ours = masters(truth) - before, masters(native).double() - before
    assert moved.abs().max() > 1e-3 and (moved - ours).abs().max() <= tolerance + (0.01 * moved.abs().max() if dtype == "bf16" else 0)


CONFIGURATIONS = [
    {},
    {"memory": SegmentMemory(7, 2)},
    {"memory": SegmentMemory(7, 2, "reproject"), "optimizer": Adam(lr=0.01)},
    {"memory": Overlap(5)},
    {"shared": True},
    {"adapt": Full(), "shared": True, "every": 2, "accumulate": True},
    {"adapt": RowSparse(0.3), "every": 2},
    {"adapt": Full(targets="model"), "shared": True, "recompute": True},
    {"every": 2, "accumulate": True, "reset": 40},
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("backend,static", [("reference", False), ("reference", True), ("cpu", False)])
def test_weights_of_one_are_no_weights_bit_for_bit(options, backend, static):
    plain, ones = (engine(streams=3, backend=backend, static=static, **options) for _ in range(2))
    for step, lengths in enumerate([None, [T, 5, 1], [0, T, 3], None]):
        tokens = text(3, seed=step)
        assert torch.equal(plain.step(tokens, lengths), ones.step(tokens, lengths, weights=torch.ones(3, T)))
        assert torch.equal(masters(plain), masters(ones)) and plain.last.flops == ones.last.flops


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_the_static_step_takes_the_same_weights(options):
    host, static = (engine(streams=3, static=static, **options) for static in (False, True))
    for step, lengths in enumerate([None, [T, 5, 1], [0, T, 3], None]):
        tokens, weights = text(3, seed=step), drawn(3, seed=step)
        weights[step % 3] = 0
        for a, b in zip(host.step(tokens, lengths, weights=weights), static.step(tokens, lengths, weights=weights)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masters(host), masters(static), rtol=1e-4, atol=1e-5)
        assert host.last.updated == static.last.updated and host.updates == static.updates


@pytest.mark.parametrize("backend,static", [("reference", False), ("reference", True), ("cpu", False)])
def test_weights_change_no_score_and_a_row_of_zeros_learns_nothing(backend, static):
    options = dict(streams=3, backend=backend, static=static, memory=SegmentMemory(7, 2), optimizer=Adam(lr=0.02))
    masked, plain, scoring = engine(**options), engine(**options), engine(**{**options, "adapt": None, "optimizer": None})
    for step in range(3):
        weights = torch.ones(3, T)
        weights[1] = 0
        before = masters(masked)[1].clone()
        nll, expected, still = (
            e.step(text(3, seed=step), **given) for e, given in ((masked, {"weights": weights}), (plain, {}), (scoring, {}))
        )
        close = torch.equal if backend == "cpu" else lambda a, b: torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        assert close(nll[[0, 2]], expected[[0, 2]]) and close(nll[1], still[1])
        assert torch.equal(masters(masked)[1], before) and masked.last.updated == [True, False, True]
        assert masked.last.grad_norm[1] is None
    assert masked.learners[0].state.step.tolist() == [3, 0, 3] and masked.updates == 6
    assert close(masters(masked)[[0, 2]], masters(plain)[[0, 2]])


def test_momentum_does_not_move_a_row_of_zeros_and_numbers_of_rows_do_the_same():
    for weights in ([[1.0] * T, [0.0] * T], [1.0, 0.0]):
        e = engine(streams=2, optimizer=SGD(lr=0.5, momentum=0.9))
        e.step(text())
        before = masters(e).clone()
        e.step(text(seed=1), weights=weights)
        assert torch.equal(masters(e)[1], before[1]) and not torch.equal(masters(e)[0], before[0])


def test_shared_weights_learn_from_the_mean_over_all_rows_tokens_that_count():
    options, weights = dict(streams=2, dtype="fp64", adapt=Full(), optimizer=SGD(lr=1.0, clip=0.0)), drawn().double()
    weights[1, 3:] = 0
    together = engine(shared=True, **options)
    before = masters(together).clone()
    together.step(text(), weights=weights)
    moved, counts, singles = masters(together) - before, (weights != 0).sum(1), []
    for row in range(2):
        one = engine(**{**options, "streams": 1})
        one.step(text()[row : row + 1], weights=weights[row : row + 1])
        singles.append((masters(one) - before) * counts[row])
    assert torch.allclose(moved, sum(singles) / counts.sum(), rtol=0, atol=1e-12) and moved.any()
    still = engine(shared=True, **options)
    still.step(text(), weights=torch.zeros(2, T))
    assert torch.equal(masters(still), before) and still.updates == 0 and still.last.updated == [False, False]


def test_a_segment_counts_as_much_as_the_others_of_its_update_however_many_of_its_tokens_count():
    options = dict(dtype="fp64", adapt=Full(), optimizer=SGD(lr=1.0, clip=0.0))
    adding = engine(every=2, accumulate=True, **options)
    before, singles = masters(adding).clone(), []
    for step in range(2):
        weights = drawn(1, seed=step).double()
        weights[:, 4 + step :] = 0
        adding.step(text(1, seed=step), weights=weights)
        one = engine(**options)
        one.step(text(1, seed=step), weights=weights)
        singles.append(masters(one) - before)
    assert torch.allclose(masters(adding) - before, sum(singles) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("static", [False, True])
def test_an_update_that_is_due_uses_what_earlier_segments_left_even_behind_one_that_counts_nothing(static, tmp_path):
    options = dict(every=2, accumulate=True, static=static, optimizer=Adam(lr=0.01))
    e, again = engine(**options), engine(**options)
    e.step(text(1))
    e.save(tmp_path)
    again.restore(tmp_path)
    for each in (e, again):
        before = masters(each).clone()
        each.step(text(1, seed=1), weights=torch.zeros(1, T))
        assert each.last.updated == [True] and not torch.equal(masters(each), before)
        for step in (2, 3):
            before = masters(each).clone()
            each.step(text(1, seed=step), weights=torch.zeros(1, T))
            assert each.last.updated == [False] and torch.equal(masters(each), before)
    assert torch.equal(masters(e), masters(again))


def test_a_constant_is_the_rows_factor():
    by_row, by_token = engine(streams=2), engine(streams=2)
    for step in range(2):
        by_row.step(text(seed=step), weights=[0.5, 2.0])
        by_token.step(text(seed=step), weights=[[0.5] * T, [2.0] * T])
    assert torch.equal(masters(by_row), masters(by_token))


def test_weights_of_every_kind():
    mask = torch.arange(T).repeat(2, 1) >= 4
    expected = None
    for weights in (
        mask,
        mask.numpy(),
        mask.tolist(),
        mask.float(),
        mask.int().tolist(),
        list(mask.double()),
        mask.numpy().astype(np.float16),
    ):
        e = engine(streams=2)
        e.step(text(), weights=weights)
        expected = masters(e) if expected is None else expected
        assert torch.equal(masters(e), expected)
    given = mask.float()
    engine(streams=2).step(text(), weights=given)
    assert torch.equal(given, mask.float())


def at(row, place, value):
    weights = torch.ones(2, T, dtype=torch.float64)
    weights[row, place] = value
    return weights


@pytest.mark.parametrize(
    "weights,message",
    [
        (torch.ones(2, T + 1), r"^weights has shape \(2, 13\): expected finite numbers \[2, 12\], one a target, or \[2\], one a row$"),
        (torch.ones(T, 2), r"^weights has shape \(12, 2\)"),
        (torch.ones(2, T, 1), r"^weights has shape \(2, 12, 1\)"),
        ([[1.0] * T], r"^weights has shape \(1, 12\)"),
        ([[1.0] * T, [1.0] * 3], r"^weights="),
        ([["a"] * T, ["b"] * T], r"^weights="),
        (torch.ones(2, T) * 1j, r"^weights="),
        (torch.ones(2, T, device="meta"), r"^weights="),
        (at(1, 3, NAN), r"^weights\[1, 3\]=nan: expected finite numbers"),
        (at(0, 11, INF), r"^weights\[0, 11\]=inf: expected finite numbers"),
        (at(0, 0, -0.25), r"^weights\[0, 0\]=-0.25: expected finite numbers of at least 0$"),
        (at(0, 2, 1e39), r"^weights\[0, 2\]=1e\+39: expected finite numbers"),
    ],
)
def test_what_is_no_weight_is_refused_by_name_and_changes_nothing(weights, message):
    e = engine(streams=2)
    before = masters(e).clone()
    with pytest.raises(ValueError, match=message):
        e.step(text(), weights=weights)
    assert torch.equal(masters(e), before) and e.last is None
