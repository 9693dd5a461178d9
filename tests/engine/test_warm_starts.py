"""Streams that start warm: resets that keep A, and adapters that are given, be it as the prior."""

import pytest
import torch
from engine_states import assert_equal, state_of
from helpers import token_rows

from dynadapt import SGD, Adam, Engine, Full, LoRA, SegmentMemory
from dynadapt.engine.learners.peft import write_adapter
from dynadapt.model import ModelError, random_model, tiny_config

T = 8
MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
KEEPS = LoRA(2, keep_a=True)
BASE = {"segment": T, "backend": "reference", "dtype": "fp32", "streams": 3, "adapt": LoRA(2), "optimizer": Adam(lr=0.02)}
DRIVERS = {"reference": {}, "static": {"static": True}, "cpu, bf16": {"backend": "cpu", "dtype": "bf16"}}
drivers = pytest.mark.parametrize("how", DRIVERS.values(), ids=DRIVERS)


def engine(**options):
    return Engine(MODEL, **{**BASE, **options})


def text(seed=0, rows=3):
    return token_rows(rows, T + 1, seed)


def parts(e, stream, buffer=None):
    """{name: A or Bt} of one stream."""
    learner = e.learners[0]
    return {
        name: learner.layout.view(learner.state.master if buffer is None else buffer, name)[stream].clone()
        for name in learner.layout.shapes
    }


def stepped(e, steps=3):
    for seed in range(steps):
        e.step(text(seed))
    return e


def jump(e):
    """A score that rises behind a steady stretch."""
    scorer = Engine(MODEL, segment=T, backend="reference", dtype="fp32")
    candidates = sorted((text(seed, 1) for seed in range(100, 130)), key=lambda t: float(scorer.step(t).mean()))
    for stream in range(e.streams):
        e.set_lr(stream, 1e-6)
        e.driver.step.changes.forget(stream)  # the stretch before was not steady
    for i in range(13):
        e.step(candidates[-1 if i == 12 else 0].repeat(3, 1))
    assert all(e.last.was_reset)


WHEN = {
    "by call": ({}, lambda e: [e.reset(s) for s in range(3)]),
    "at a document": ({"reset": "document"}, lambda e: [e.enter(s) for s in range(3)]),
    "after some tokens": ({"reset": 4 * T}, lambda e: e.step(text(3))),
    "where the score jumps": ({"reset": "auto"}, jump),
}


@drivers
@pytest.mark.parametrize("options,back", WHEN.values(), ids=WHEN)
def test_a_reset_keeps_a(options, back, how):
    e, fresh = stepped(engine(adapt=KEEPS, **options, **how)), engine(**how)
    learned = parts(e, 1)
    back(e)
    now, start = parts(e, 1), parts(fresh, 1)
    for name in now:
        if name.endswith(".A"):
            assert torch.allclose(now[name], learned[name], atol=1e-4)  # what the steps before a jump still move by 1e-6 each
            assert (now[name] - start[name]).abs().max() > 1e-3
        else:
            assert not now[name].any() and learned[name].any()
    state = e.learners[0].state
    assert not any(t.any() for t in (state.grad, state.first, state.second, state.step))
    if state.working is not None:
        assert torch.equal(state.working, state.master.to(state.working.dtype))
    assert torch.equal(e.step(text(5)), fresh.step(text(5)))  # it adds nothing: the model as it is
    moved = parts(e, 1)
    for name in now:  # with B at zero A has no gradient, and no moment is left that would move it
        assert torch.equal(moved[name], now[name]) == name.endswith(".A")


def test_without_it_a_goes_back_and_nothing_is_said():
    e = stepped(engine())
    e.reset(1)
    for name, t in parts(e, 1).items():
        assert torch.equal(t, parts(engine(), 1)[name])
    assert "keep_a" not in e.describe()["adapt"] and "keep_a" not in repr(e)
    assert engine(adapt=KEEPS).describe()["adapt"]["keep_a"] is True and "keep_a=True" in repr(KEEPS)


def test_a_saved_state_keeps_a_too(tmp_path):
    e, again = stepped(engine(adapt=KEEPS, reset=4 * T)), engine(adapt=KEEPS, reset=4 * T)
    e.save(tmp_path)
    again.restore(tmp_path)
    for seed in range(3, 7):
        assert torch.equal(e.step(text(seed)), again.step(text(seed)))
    with pytest.raises(ModelError, match="saved with adapt="):
        engine(reset=4 * T).restore(tmp_path)


def adapter(path):
    """A directory with the adapter of stream 2, and its values [P]."""
    e = stepped(engine(), 4)
    write_adapter(path, e.learners[0], e.config, 2, "tiny")
    return path, e.learners[0].state.master[2].clone()


@drivers
def test_a_stream_starts_from_an_adapter(tmp_path, how):
    path, values = adapter(tmp_path)
    e, loaded = (stepped(engine(memory=SegmentMemory(8, 1), **how)) for _ in range(2))
    e.enter(1, adapter=path)
    loaded.enter(1)
    loaded.load_adapter(path, 1)
    assert torch.equal(e.learners[0].state.master[1], values)
    for seed in range(5, 8):
        assert torch.equal(e.step(text(seed)), loaded.step(text(seed)))
    e.reset(1)
    assert torch.equal(e.learners[0].state.master[1], e.learners[0].initial)


@drivers
def test_a_stream_starts_from_a_snapshots_adapter(how):
    e = stepped(engine(memory=SegmentMemory(8, 1), reset="document", **how))
    taken = e.snapshot(0)
    stepped(e)
    e.enter(1, lr=0.5, adapter=taken)
    state = e.learners[0].state
    assert torch.equal(state.master[1], taken.learned["master"]) and not state.step[1] and not state.first[1].any()
    assert e.decoder.memory.filled[1] == 0 and e.state[1].segments == 0 and float(e.lr[1]) == 0.5


@drivers
@pytest.mark.parametrize("options,back", WHEN.values(), ids=WHEN)
def test_resets_lead_back_to_a_prior_that_was_given(tmp_path, options, back, how):
    path, values = adapter(tmp_path)
    e = engine(**options, **how)
    e.enter(1, adapter=path, prior=True)
    stepped(e)
    assert not torch.equal(e.learners[0].state.master[1], values)
    back(e)
    masters = e.learners[0].state.master
    assert torch.equal(masters[1], values)
    assert torch.equal(masters[0], e.learners[0].initial) and torch.equal(masters[2], e.learners[0].initial)
    if e.learners[0].state.working is not None:
        assert torch.equal(e.learners[0].state.working, masters.bfloat16())


@drivers
def test_decay_leads_back_to_it(tmp_path, how):
    path, values = adapter(tmp_path)
    e = engine(optimizer=Adam(lr=0.02, decay=0.25), **how)
    e.enter(1, adapter=path, prior=True)
    stepped(e)
    before = e.learners[0].state.master.clone()
    for stream in range(3):
        e.set_lr(stream, 0.0)
    e.step(text(7))
    priors = torch.stack([e.learners[0].initial, values, e.learners[0].initial])
    assert torch.allclose(e.learners[0].state.master, before + 0.25 * (priors - before), atol=1e-6)


def test_recorded_passes_are_let_go_of_once(tmp_path):
    path, _ = adapter(tmp_path)
    e = stepped(engine(static=True, reset="auto"))
    assert e.static.recordings
    e.enter(1, adapter=path)
    assert e.static.recordings
    e.enter(1, adapter=path, prior=True)  # the priors have moved in memory
    assert not e.static.recordings
    e.step(text())
    e.enter(2, adapter=path, prior=True)
    assert e.static.recordings


def test_its_prior_goes_with_a_snapshot_and_a_saved_state(tmp_path):
    path, values = adapter(tmp_path / "adapter")
    e = stepped(engine())
    plain = e.snapshot(1)
    e.enter(1, adapter=path, prior=True)
    taken = stepped(e).snapshot(1)
    assert taken.nbytes == plain.nbytes + values.nbytes
    e.save(tmp_path / "state")
    other, restored = engine(), engine()
    other.rollback(0, taken)
    restored.restore(tmp_path / "state")
    first = e.step(text(5))
    assert torch.equal(restored.step(text(5)), first)
    for each, stream in ((e, 1), (other, 0), (restored, 1)):
        each.reset(stream)
        assert torch.equal(each.learners[0].state.master[stream], values)
    e.rollback(1, plain)  # from before it had a prior of its own
    e.reset(1)
    assert torch.equal(e.learners[0].state.master[1], e.learners[0].initial)
    fresh = stepped(engine())
    fresh.save(tmp_path / "fresh")
    e.restore(tmp_path / "fresh")
    e.reset(1)
    assert torch.equal(e.learners[0].state.master[1], e.learners[0].initial)


def test_with_shared_weights_it_is_everyones(tmp_path):
    path, values = adapter(tmp_path)
    e = engine(shared=True, optimizer=SGD(lr=0.1, decay=0.1))
    e.enter(2, adapter=path, prior=True)
    assert torch.equal(e.learners[0].state.master[0], values)
    stepped(e).reset(0)
    assert torch.equal(e.learners[0].state.master[0], values)


@pytest.mark.parametrize(
    "options,given,said",
    [
        ({}, dict(prior=True), "prior=True with adapter=None: give the adapter"),
        ({}, dict(adapter="PATH", prior=1), "prior=1: expected True or False"),
        ({}, dict(adapter=3), "adapter=3: expected"),
        ({}, dict(adapter="nowhere"), ".*nowhere"),
        ({"adapt": LoRA(3)}, dict(adapter="PATH"), ".*adapter has r=2.*has 3"),
        ({"adapt": LoRA(3)}, dict(adapter="SNAPSHOT"), "adapter: taken in an engine with adapt="),
        ({"adapt": Full()}, dict(adapter="PATH"), "adapt=Full.*: only an engine with LoRA takes adapters"),
        ({"adapt": None, "optimizer": None}, dict(adapter="SNAPSHOT"), "adapt=None: only an engine with LoRA takes adapters"),
        ({"adapt": KEEPS}, dict(adapter="PATH", prior=True), r"prior=True with adapt=LoRA\(keep_a=True\)"),
        ({"static": True, "optimizer": SGD(decay=0.1, clip=0)}, dict(adapter="PATH", prior=True), "prior=True with optimizer=SGD"),
        ({"guard": "exact", "reset": "auto"}, dict(adapter="PATH", prior=True), r"prior=True with guard=Guard\(.*reset='auto'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path, options, given, said):
    path, _ = adapter(tmp_path)
    e = engine(**options)
    places = {"PATH": path, "SNAPSHOT": engine().snapshot(0)}
    before = state_of(e)
    with pytest.raises(ValueError, match=f"^{said}"):
        e.enter(1, **{name: places.get(value, value) if isinstance(value, str) else value for name, value in given.items()})
    assert_equal(before, state_of(e))
    assert e.calls.damage is None
