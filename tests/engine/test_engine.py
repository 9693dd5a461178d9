"""The engine's arguments, resets, memory window and row choice."""

import pytest
import torch

from dynadapt import SGD, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.adapt.resets import ChangePoints
from dynadapt.engine.memory import WindowStore
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import UnsupportedOp, resolve
from dynadapt.ops.decisions import WARMUP

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
VOCABULARY = MODEL.config.vocab_size


def engine(**options):
    return Engine(MODEL, **{"segment": 8, "backend": "reference", "dtype": "fp32", **options})


def text(length, streams=1, seed=0):
    return torch.randint(VOCABULARY, (streams, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"dtype": "fp16"}, "dtype='fp16'.*bf16"),
        ({"streams": 0}, "streams=0"),
        ({"segment": -1}, "segment=-1"),
        ({"every": 0}, "every=0"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 1, "streams": 2, "shared": True}, "batch=1 with shared=True"),
        ({"reset": "sometimes"}, "reset='sometimes'"),
        ({"reset": 0}, "reset=0"),
        ({"shared": True, "reset": "auto"}, "shared=True"),
        ({"optimizer": Adam()}, "adapt=None"),
        ({"backend": "gpu"}, "backend='gpu'"),
        ({"memory": 512}, "memory=512"),
        ({"adapt": LoRA(layers=range(0, 99))}, "layers=0:99.*0:"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        engine(**options)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: LoRA(rank=0), "rank=0"),
        (lambda: LoRA(alpha=-1), "alpha=-1"),
        (lambda: LoRA(targets="heads"), "targets='heads'"),
        (lambda: RowSparse(density=0), "density=0"),
        (lambda: RowSparse(select="best"), "select='best'"),
        (lambda: Full(layers=range(3, 3)), "layers=range"),
        (lambda: Adam(lr=-1), "lr=-1"),
        (lambda: Adam(betas=(1, 1)), "betas"),
        (lambda: SGD(momentum=1), "momentum=1"),
        (lambda: Adam(decay=2), "decay=2"),
        (lambda: SegmentMemory(0, 0), "length=0 with sinks=0"),
        (lambda: SegmentMemory(-1), "length=-1"),
        (lambda: Overlap(4, 5), "begin=5"),
        (lambda: SegmentMemory(4, -1), "sinks=-1"),
        (lambda: SegmentMemory(4, 1, "recompute"), "Overlap"),
        (lambda: Overlap(0), "context=0"),
        (lambda: Adam(lr=float("nan")), "lr=nan"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "tokens,lengths,message",
    [
        (text(3, 2), None, "shape"),
        (text(99), None, "shape"),
        (text(1), None, "shape"),
        (text(5) + VOCABULARY, None, "ids"),
        (text(5) - VOCABULARY, None, "ids"),
        (text(5), [5], "lengths"),
        (text(5), [1, 1], "lengths"),
    ],
)
def test_wrong_tokens_are_named(tokens, lengths, message):
    with pytest.raises(ValueError, match=message):
        engine().step(tokens, lengths)


def test_an_op_that_nothing_serves_is_an_error():
    with pytest.raises(UnsupportedOp, match="norm_forward.*float64"):
        resolve("norm_forward", "cpu", torch.float64)
    with pytest.raises(UnsupportedOp, match="'softmax' is not defined"):
        resolve("softmax", "reference", torch.float32)


@pytest.mark.parametrize(
    "capacity,sinks,pieces",
    [(10, 3, [4, 4, 4, 4]), (10, 3, [2, 25, 1]), (10, 3, [1, 1, 30]), (5, 0, [3, 3, 7]), (6, 5, [1, 1, 1, 9]), (10, 3, [10, 1])],
)
def test_window_keeps_the_sinks_and_the_latest(capacity, sinks, pieces):
    store, filled, seen = WindowStore(torch.zeros(1, capacity, 1)), 0, []
    for count in pieces:
        new = torch.arange(len(seen), len(seen) + count, dtype=torch.float32)[:, None]
        store.advance(0, filled, new, sinks)
        seen += new[:, 0].tolist()
        filled = min(capacity, filled + count)
        expected = seen if len(seen) <= capacity else seen[:sinks] + seen[len(seen) - (capacity - sinks) :]
        assert store.rows[0, :filled, 0].tolist() == expected


def test_memory_with_sinks_equals_a_forward_over_that_window():
    """Past its capacity the memory holds [sinks; last]: the layers' keys were made at earlier positions, so one layer decides."""
    config = tiny_config("llama").__class__(**{**tiny_config("llama").__dict__, "layers": 1})
    one_layer = random_model(config, seed=0, std=0.1)
    row = text(33)
    e = Engine(one_layer, memory=SegmentMemory(8, 2), segment=8, backend="reference", dtype="fp32")
    for start in (0, 8, 16, 24):
        got = e.step(row[:, start : start + 9])
    window = torch.cat([row[:, :2], row[:, 16:33]], 1)
    whole = Engine(one_layer, segment=18, backend="reference", dtype="fp32").step(window)
    assert torch.allclose(got[0], whole[0, 10:], atol=1e-5)


def test_change_point_fires_on_a_jump_and_not_on_noise():
    generator = torch.Generator().manual_seed(0)
    noise = lambda n: (3 + 0.1 * torch.randn(n, generator=generator)).tolist()  # noqa: E731
    one, wide = torch.zeros(1, dtype=torch.int64), lambda x: torch.tensor([x], dtype=torch.float64)
    observe = lambda points, x: bool(points.observe(one, wide(x), torch.tensor([True])))  # noqa: E731
    steady = ChangePoints(1)
    assert not any(observe(steady, x) for x in noise(150))
    jump = ChangePoints(1)
    assert not any(observe(jump, x) for x in noise(20))
    fired = [observe(jump, x + 0.5) for x in noise(5)]
    assert any(fired[:2]) and jump.points()[0].count <= 5
    early = ChangePoints(1)
    assert not any(observe(early, 3.0 + i) for i in range(WARMUP))
    assert not observe(ChangePoints(1), float("nan"))


def test_reset_every_n_tokens_returns_to_the_prior():
    e, static = engine(adapt=LoRA(rank=2), optimizer=Adam(lr=0.1), reset=16), engine()
    row = text(41)
    got, expected, resets = [], [], []
    for start in range(0, 40, 8):
        got.append(e.step(row[:, start : start + 9]))
        expected.append(static.step(row[:, start : start + 9]))
        resets.append(e.last.was_reset[0])
    assert resets == [False, True, False, True, False]
    same = [torch.equal(a, b) for a, b in zip(got, expected)]
    assert same == [True, False, True, False, True]


def test_reset_auto_leaves_the_scored_segment_alone_and_skips_its_update():
    e = engine(adapt=LoRA(rank=2, alpha=32.0), optimizer=Adam(lr=0.02), reset="auto")
    easy, hard = torch.zeros(1, 9, dtype=torch.int64), text(9)
    for _ in range(20):
        e.step(easy)
    updates = e.updates
    e.step(hard)
    assert e.last.was_reset == [True] and e.updates == updates and not e.last.updated[0]
    assert torch.equal(e.learners[0].state.master[0], e.learners[0].state.prior)


def test_documents_reset_only_when_asked():
    for reset, cleared in (("never", False), ("document", True)):
        e = engine(adapt=LoRA(rank=2), memory=SegmentMemory(8, 1), optimizer=Adam(lr=0.1), reset=reset)
        e.step(text(9))
        e.enter(0)
        assert torch.equal(e.learners[0].state.master[0], e.learners[0].state.prior) == cleared
        assert int(e.decoder.memory.length[0]) == 0


def test_a_stream_has_its_own_learning_rate():
    e = engine(adapt=LoRA(rank=2), optimizer=SGD(lr=1.0), streams=2)
    e.enter(1, lr=0.0)
    row = text(9)
    e.step(row.repeat(2, 1))
    moved = [not torch.equal(e.learners[0].state.master[s], e.learners[0].state.prior) for s in range(2)]
    assert moved == [True, False]
    with pytest.raises(ValueError, match="lr=-1"):
        e.enter(0, lr=-1)


def test_row_choice_follows_the_gradient_and_only_chosen_rows_move():
    e = engine(adapt=RowSparse(density=0.1, every=3), optimizer=SGD(lr=1.0, clip=0.0))
    learner, row = e.learners[0], text(9)
    exact = Engine(MODEL, adapt=Full(), optimizer=SGD(lr=1.0, clip=0.0), segment=8, backend="reference", dtype="fp32")
    before = learner.weights()
    e.step(row)
    exact.step(row)
    shared = []
    for name, rows in learner.rows.items():
        after, change = learner.weights()[name], exact.learners[0].weights()[name] - before[name]
        moved = (after != before[name]).any(1).nonzero()[:, 0].tolist()
        assert moved == rows.tolist()
        assert torch.allclose(after[rows.long()] - before[name][rows.long()], change[rows.long()], atol=1e-5)
        best = set(change.norm(dim=1).topk(len(moved)).indices.tolist())
        shared.append(len(best & set(moved)) / len(moved))
    assert sum(shared) / len(shared) > 0.5  # the estimate finds most of the rows that matter
    kept = {name: rows.clone() for name, rows in learner.rows.items()}
    e.step(text(9, seed=1))
    e.step(text(9, seed=2))
    assert all(torch.equal(kept[n], learner.rows[n]) for n in kept)
    e.step(text(9, seed=3))
    assert any(not torch.equal(kept[n], learner.rows[n]) for n in kept)


def test_fixed_rows_are_evenly_spaced_and_full_density_is_full():
    e = engine(adapt=RowSparse(density=0.5, select="fixed"))
    assert all((rows.diff() >= 1).all() for rows in e.learners[0].rows.values())
    dense = engine(adapt=RowSparse(density=1.0, select="fixed"), optimizer=Adam(lr=0.01))
    full = engine(adapt=Full(), optimizer=Adam(lr=0.01))
    for seed in range(3):
        assert torch.equal(dense.step(text(9, seed=seed)), full.step(text(9, seed=seed)))


def test_explain_names_every_op_and_the_costs():
    said = engine(adapt=LoRA(rank=2), memory=SegmentMemory(8, 1)).explain(time=True)
    for word in (
        "lora_gradient",
        "attention_backward",
        "reference: asked for",
        "LoRA(rank=2",
        "tokens/s",
        "outside the ops",
        "kept for backward",
    ):
        assert word in said
    assert "lora_gradient" not in engine().explain() and "the first step makes its buffers" in engine().explain()
