"""The step with fixed shapes and no host decision does what the step of the CPU engine does, and never asks the device."""

import weakref
from contextlib import contextmanager

import pytest
import torch

from dynadapt import RMS, SGD, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.engine.op_set import OpSet
from dynadapt.model import random_model, tiny_config

MODELS = {family: random_model(tiny_config(family), seed=0, std=0.1) for family in ("llama", "qwen3", "gpt2", "granite", "gptneox")}
T = 8


def engine(static, family="llama", **options):
    options = {"segment": T, "backend": "reference", "dtype": "fp32", "streams": 3, **options}
    return Engine(MODELS[family], static=static, **options)


def pair(family="llama", **options):
    return engine(False, family, **options), engine(True, family, **options)


def text(streams, length=T, seed=0, family="llama"):
    return torch.randint(MODELS[family].config.vocab_size, (streams, length + 1), generator=torch.Generator().manual_seed(seed))


def assert_same(host, static, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5, **tolerance}
    for a, b in zip(host.learners, static.learners):
        torch.testing.assert_close(a.state.master, b.state.master, **tolerance)
        assert torch.equal(a.state.step, b.state.step)
    if host.decoder.memory is not None:
        assert torch.equal(host.decoder.memory.length, static.decoder.memory.length)
        assert host.decoder.memory.filled == static.decoder.memory.filled == static.decoder.memory.length.tolist()
        # of projections that are made again at each step, those of resting streams are old
        for kind in ("keys", "values") if host.decoder.memory.inputs is None else ("inputs",):
            for a, b in zip(getattr(host.decoder.memory, kind), getattr(static.decoder.memory, kind)):
                for slot, filled in enumerate(host.decoder.memory.filled):
                    torch.testing.assert_close(a.rows[slot, :filled], b.rows[slot, :filled], **tolerance)
    assert (host.updates, host.skipped_updates) == (static.updates, static.skipped_updates)
    for name in ("updated", "skipped", "was_reset"):
        assert getattr(host.last, name) == getattr(static.last, name), name
    for a, b in zip(host.last.grad_norm, static.last.grad_norm):
        assert (a is None) == (b is None) and (a is None or abs(a - b) < 1e-4 * (1 + abs(a)))


def compare(host, static, lengths=None, steps=4, family="llama", enter=()):
    rows = host.streams
    exact = lengths is None and not isinstance(host.memory, Overlap)  # else it counts its padding, which it does compute
    for step in range(steps):
        for e in (host, static):
            for stream in enter if step == 2 else ():
                e.enter(stream)
        tokens = text(rows, seed=step, family=family)
        wanted = lengths(step) if lengths else None
        torch.testing.assert_close(host.step(tokens, wanted), static.step(tokens, wanted), rtol=1e-4, atol=1e-5)
        assert_same(host, static)
        if exact:
            assert host.last.flops == static.last.flops
    assert not exact or host.flops == static.flops


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": SegmentMemory(6, 2)},
        {"memory": Overlap(5)},
        {"adapt": LoRA(2), "optimizer": Adam(lr=0.01, decay=0.01)},
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2)},
        {"adapt": LoRA(2), "memory": SegmentMemory(20, 3)},
        {"adapt": LoRA(2), "memory": SegmentMemory(0, 1)},
        {"adapt": LoRA(2), "memory": Overlap(5)},
        {"adapt": LoRA(2, layers=range(1, 2), targets="mlp"), "recompute": True},
        {"adapt": LoRA(2), "recompute": True},
        {"adapt": LoRA(2), "every": 2},
        {"adapt": LoRA(2), "every": 2, "accumulate": True},
        {"adapt": LoRA(2), "batch": 2},
        {"memory": SegmentMemory(6, 2), "batch": 1},
        {"adapt": LoRA(2), "shared": True},
        {"adapt": LoRA(2), "shared": True, "every": 2, "accumulate": True},
        {"adapt": Full(), "shared": True, "optimizer": Adam(lr=1e-3, decay=0.01)},
        {"adapt": Full(targets="mlp")},
        {"adapt": RowSparse(0.3, every=2), "optimizer": Adam(lr=1e-3, decay=0.01)},
        {"adapt": RowSparse(0.3, select="fixed"), "every": 2},
        {"adapt": Full(targets="model"), "shared": True},
        {"adapt": Full(targets="model"), "every": 2, "accumulate": True, "recompute": True},
        {"adapt": LoRA(2), "reset": 20},
        {"adapt": LoRA(2), "reset": "document"},
        {"adapt": RowSparse(0.3), "reset": 20},
    ],
    ids=str,
)
def test_the_static_step_is_the_step(options):
    host, static = pair(**options)
    compare(host, static, enter=(1,))


def test_a_segment_behind_which_all_go_back_costs_what_scoring_does():
    for static in (False, True):
        learning, scoring = engine(static, adapt=Full(), reset=T, optimizer=SGD()), engine(static)
        assert torch.equal(learning.step(text(3)), scoring.step(text(3)))
        assert learning.last.flops == scoring.last.flops and learning.last.was_reset == [True] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2)},
        {"adapt": LoRA(2), "memory": SegmentMemory(0, 3, "reproject")},
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2, "reproject")},
        {"adapt": LoRA(2), "memory": Overlap(5), "every": 2},
        {"adapt": Full(), "shared": True},
        {"adapt": Full(targets="model"), "shared": True},
    ],
    ids=str,
)
def test_ragged_and_resting_streams(options):
    host, static = pair(**options)
    compare(host, static, lengths=lambda step: [[8, 3, 0], [0, 8, 5], [1, 0, 0], [8, 8, 8]][step])


@pytest.mark.parametrize(
    "family,options",
    [
        ("qwen3", {"adapt": LoRA(2), "memory": SegmentMemory(6, 2)}),
        ("gpt2", {"adapt": LoRA(2), "memory": Overlap(5)}),
        ("qwen3", {"adapt": LoRA(2), "memory": SegmentMemory(6, 2, "reproject"), "recompute": True}),
        ("gpt2", {"adapt": Full(), "shared": True, "recompute": True}),
        ("gpt2", {"adapt": Full(targets="model"), "memory": Overlap(5)}),
        ("qwen3", {"adapt": Full(targets="model"), "shared": True, "memory": SegmentMemory(6, 2, "reproject")}),
        ("granite", {"adapt": LoRA(2), "memory": SegmentMemory(6, 2)}),
        ("gptneox", {"adapt": LoRA(2, targets="attn"), "memory": SegmentMemory(6, 2, "reproject"), "recompute": True}),
        ("gptneox", {"adapt": Full(targets="model"), "shared": True}),
    ],
)
def test_families(family, options):
    host, static = pair(family, **options)
    for step in range(3):
        tokens = text(3, seed=step, family=family)
        torch.testing.assert_close(host.step(tokens), static.step(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapt", [RowSparse(0.3), Full(), Full(targets="model")])
def test_frozen_statistics(adapt):
    host, static = pair(adapt=adapt, optimizer=RMS(lr=1e-3, clip=1.0), shared=True)
    for e in (host, static):
        e.gather_statistics(list(text(2, seed=9)))
    compare(host, static)


@pytest.mark.parametrize("adapt", [LoRA(2), Full(), Full(targets="model")])
def test_a_change_of_the_text_resets(adapt):
    host, static = pair(adapt=adapt, reset="auto", optimizer=Adam(lr=1e-6))
    scorer = Engine(MODELS["llama"], segment=T, backend="reference", dtype="fp32")
    candidates = sorted((text(1, seed=s) for s in range(30)), key=lambda t: float(scorer.step(t).mean()))
    easy, hard = candidates[0].repeat(3, 1), candidates[-1].repeat(3, 1)
    for step in range(14):
        tokens = hard if step == 12 else easy
        a, b = host.step(tokens), static.step(tokens)
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)
        assert host.last.was_reset == static.last.was_reset
        assert any(host.last.was_reset) == (step == 12)
    for a, b in zip(*(e.driver.step.changes.points() for e in (host, static))):
        assert a.count == b.count and abs(a.mean - b.mean) < 1e-3


@pytest.mark.parametrize("static", [False, True])
def test_streams_in_batches_score_and_learn_the_same(static):
    options = {"adapt": LoRA(2), "memory": SegmentMemory(6, 2), "streams": 5}
    whole, parts = engine(static, **options), engine(static, **options, batch=2)
    for step in range(3):
        tokens, lengths = text(5, seed=step), [8, 0, 0, 3, 8] if step == 1 else None
        torch.testing.assert_close(whole.step(tokens, lengths), parts.step(tokens, lengths), rtol=1e-5, atol=1e-6)
        assert whole.last.updated == parts.last.updated
    torch.testing.assert_close(whole.learners[0].state.master, parts.learners[0].state.master, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"adapt": LoRA(2)}, {"adapt": Full(), "shared": True}], ids=str)
def test_rows_weigh_what_they_are_given(options):
    host, static = pair(optimizer=SGD(lr=0.1), **options)
    for step, weights in enumerate([[0.5, 2.0, 0.0], None, [1, 1, 3]]):
        for e in (host, static):
            e.step(text(3, seed=step), weights=weights)
        assert_same(host, static)


def test_streams_enter_and_leave_by_number():
    host, static = pair(adapt=LoRA(2), memory=SegmentMemory(6, 2), streams=5)
    for step, streams in enumerate([[0, 1], [4, 2], [2, 0], [1, 4]]):
        tokens = text(2, seed=step)
        torch.testing.assert_close(host.step(tokens, streams=streams), static.step(tokens, streams=streams), rtol=1e-4, atol=1e-5)
        assert host.last.updated == static.last.updated == [s in streams for s in range(5)]
    assert len(static.static.recordings) == 1
    assert_same(host, static)


def test_a_stream_with_a_bad_weight_is_skipped_alone():
    host, static = pair(adapt=LoRA(2), memory=SegmentMemory(6, 2))
    for e in (host, static):
        e.step(text(3))
        e.learners[0].state.working, was = e.learners[0].state.working, e.learners[0].state.master
        was[1, 5] = float("nan")
    a, b = host.step(text(3, seed=1)), static.step(text(3, seed=1))
    assert a[1].isnan().any() and b[1].isnan().any()
    torch.testing.assert_close(a[[0, 2]], b[[0, 2]], rtol=1e-4, atol=1e-5)
    assert host.last.skipped == static.last.skipped == [False, True, False]
    assert static.last.updated == [True, False, True] and static.skipped_updates == 1


def test_a_static_engine_resumes_bit_for_bit(tmp_path):
    options = {"adapt": LoRA(2), "memory": SegmentMemory(6, 2), "reset": "auto", "static": True}
    whole, half = Engine(MODELS["llama"], **OPTIONS, **options), Engine(MODELS["llama"], **OPTIONS, **options)
    for step in range(3):
        whole.step(text(3, seed=step))
        half.step(text(3, seed=step))
    half.save(tmp_path)
    again = Engine(MODELS["llama"], **OPTIONS, **options)
    again.restore(tmp_path)
    for step in range(3, 6):
        assert torch.equal(whole.step(text(3, seed=step)), again.step(text(3, seed=step)))
    assert (whole.updates, whole.flops) == (again.updates, again.flops)


def test_replayed_steps_are_counted():
    """On a GPU a recorded step runs without Python; its FLOPs, updates and memory are counted all the same."""
    options = {"adapt": LoRA(2), "memory": SegmentMemory(20, 2), "every": 2}
    plain, replayed = engine(True, **options), engine(True, **options)
    static = replayed.static

    def replayed_run(rec, kind, p, again):
        """As a graph does it: what the first run of a kind counted is not counted by the ones after it."""
        decoder = replayed.decoder
        counting = decoder.ledger
        decoder.ledger = counting if rec.runs == 0 else type(counting)()
        static.step.run(kind, p, rec.given, rec.made, again)
        decoder.ledger = counting
        if rec.runs > 0:
            decoder.attended_back = 99  # a graph tells nothing
        return rec.runs > 0

    static._replayed = replayed_run
    for step in range(8):
        tokens = text(3, seed=step)
        assert torch.equal(plain.step(tokens), replayed.step(tokens))
        assert plain.last.flops == replayed.last.flops and plain.flops == replayed.flops
    assert plain.updates == replayed.updates == 12


OPTIONS = {"segment": T, "backend": "reference", "dtype": "fp32", "streams": 3}
ASKING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "masked_select", "unique")


@contextmanager
def nothing_asks(monkeypatch):
    """Inside, every way in which the host can ask for a tensor's numbers fails, except within an op."""
    asleep = [False]

    def guarded(name, original):
        def call(*args, **kwargs):
            if not asleep[0]:
                raise AssertionError(f"the step asks the device: Tensor.{name}")
            return original(*args, **kwargs)

        return call

    inner = OpSet.__getattr__

    def op(self, name):
        function = inner(self, name)
        if name.startswith("_"):
            return function

        def call(*args):
            asleep[0] = True
            try:
                function(*args)
            finally:
                asleep[0] = False

        return call

    with monkeypatch.context() as patch:
        patch.setattr(OpSet, "__getattr__", op)
        for name in ASKING:
            patch.setattr(torch.Tensor, name, guarded(name, getattr(torch.Tensor, name)))
        yield


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2)},
        {"adapt": LoRA(2), "memory": Overlap(5)},
        {"adapt": LoRA(2), "reset": "auto"},
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2, "reproject")},
        {"adapt": LoRA(2), "every": 2, "accumulate": True},
        {"adapt": RowSparse(0.3, every=2), "shared": True},
        {"adapt": Full(), "shared": True, "recompute": True},
        {"adapt": Full(targets="model"), "shared": True, "every": 2, "accumulate": True},
    ],
    ids=str,
)
def test_the_step_never_asks_the_device(options, monkeypatch):
    e = engine(True, **options)
    step = e.driver.step
    body = step.run

    def watched(*args):
        with nothing_asks(monkeypatch):
            body(*args)

    step.run = watched
    for step in range(3):
        e.step(text(3, seed=step))
    with nothing_asks(monkeypatch), pytest.raises(AssertionError, match="asks the device"):
        torch.zeros(1).item()


def test_rows_that_learn_cannot_watch_for_changes():
    with pytest.raises(ValueError, match="reset='auto' with adapt=RowSparse on a GPU"):
        engine(True, adapt=RowSparse(0.3), reset="auto")


@pytest.mark.parametrize(
    "streams,message",
    [([0, 0], "streams=.*different"), ([0, 9], "expected different numbers in 0..2"), ([1], r"tokens has shape \(2, 9\)")],
)
def test_wrong_streams_are_named(streams, message):
    with pytest.raises(ValueError, match=message):
        engine(False).step(text(2), streams=streams)


@pytest.mark.parametrize(
    "options,message",
    [({"device": "tpu"}, "device='tpu'"), ({"device": "cuda:99"}, "device='cuda:99'"), ({"device": "meta"}, "expected auto, cpu, cuda")],
)
def test_wrong_devices_are_named(options, message):
    if options["device"].startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        Engine(MODELS["llama"], **options)


@pytest.mark.parametrize("static", [False, True])
def test_what_backward_does_not_read_is_not_kept_by_layer(static):
    e = engine(static, adapt=LoRA(2))
    e.step(text(3))
    names = [name for name, _ in e.workspace.buffers if isinstance(name, tuple) and len(name) == 2]
    assert {key for group, key in names if group in ("o", "down") and key not in ("dU", "dx")} == {"shared"}
    assert {key for group, key in names if group == "mlp_in" and isinstance(key, int)} == set(
        range(MODELS["llama"].config.layers)
    )  # and this one is


def test_dropped_recordings_take_everything_with_them():
    e = engine(True, adapt=LoRA(2))
    e.step(text(3))
    buffers = [weakref.ref(t) for rec in e.static.recordings.values() for t in (rec.given_buffer, rec.made_buffer)]
    assert buffers and all(ref() is not None for ref in buffers)
    e.static.drop_recordings()
    assert not e.static.recordings and not any(ref() is not None for ref in buffers)
    assert not e.static.capture  # references look at numbers on the host: a graph cannot hold them
