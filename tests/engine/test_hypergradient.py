"""Rates that move by hypergradient: written out by hand in float64, and all that they have to go with."""

import math

import numpy as np
import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import SGD, Adam, AdamW, Alarm, Engine, Full, Hypergradient, LoRA, Muon, RateMixture, RowSparse, SegmentMemory, Selection
from dynadapt.adapt.hypergradient import as_hypergradient
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.ops import hypergradient as arithmetic
from dynadapt.ops import update as update_op

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T = 8
FAST = Hypergradient(step=0.5, limit=3.0)


def engine(hypergradient=FAST, streams=1, **options):
    given = {"adapt": LoRA(2), "optimizer": SGD(lr=0.5, clip=0), "segment": T, "backend": "reference", "dtype": "fp64"}
    return Engine(MODEL, streams=streams, hypergradient=hypergradient, **{**given, **options})


def segments(count=10, rows=1, seed=0, most=6):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(most, (rows, T + 1), generator=g) for _ in range(count)]


def state(e):
    return e.learners[0].state


def by_hand(e, steps, rule, direction):
    """Masters [P] and factors [G] of a plain engine ``e`` that is moved by ``direction(g, t)`` times each tensor's factor."""
    layout, s = e.learners[0].layout, state(e)
    factors, last = dict.fromkeys(layout.shapes, 1.0), None
    for t, tokens in enumerate(steps, 1):
        e.forward_backward(tokens)
        g = s.grad[0].clone()
        e.optim_step(lr=0.0)  # the gradient is gone, and nothing has moved
        d = direction(g, t)
        for name in layout.shapes:
            gradient, taken = (None if x is None else layout.view(x, name).flatten().numpy() for x in (g, last))
            product = 0.0 if last is None else np.linalg.norm(gradient) * np.linalg.norm(taken)
            if product > 0:
                moved = math.log(factors[name]) + rule.step * float(gradient @ taken) / product
                factors[name] = math.exp(min(max(moved, -math.log(rule.limit)), math.log(rule.limit)))
            layout.view(d, name).mul_(factors[name])
        s.master[0] -= d
        last = d
    return s.master[0].clone(), list(factors.values())


def adam_by_hand(lr, beta1, beta2, eps):
    m = v = 0.0

    def direction(g, t):
        nonlocal m, v
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        return lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)

    return direction


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("rule", [FAST, Hypergradient(step=0.02), Hypergradient(step=3.0, limit=1.25)], ids=repr)
def test_it_is_what_is_written(kind, rule):
    optimizer, direction = {
        "sgd": (SGD(lr=0.5, clip=0), lambda g, t: 0.5 * g),
        "adam": (Adam(lr=2**-7, clip=0, eps=1e-4), adam_by_hand(2**-7, 0.9, 0.999, 1e-4)),  # a rate that float32 holds
    }[kind]
    e, steps = engine(rule, optimizer=optimizer), segments()
    master, factors = by_hand(engine(None), steps, rule, direction)
    for tokens in steps:
        e.step(tokens)
    torch.testing.assert_close(state(e).master[0], master, rtol=0, atol=1e-9)
    torch.testing.assert_close(state(e).log_rate[0].exp(), torch.tensor(factors), rtol=1e-7, atol=0, check_dtype=False)
    assert max(factors) > 1 + min(rule.step, 2) / 10 and (max(factors) == pytest.approx(1.25)) == (rule.limit == 1.25)


def test_steps_that_turn_back_get_shorter():
    e, steps = engine(optimizer=SGD(lr=8.0)), segments()
    for tokens in steps:
        e.step(tokens)
    assert state(e).log_rate.min() < -0.1


@pytest.mark.parametrize("backend,dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
def test_the_first_step_is_the_plain_one_bit_for_bit(backend, dtype):
    e, plain, tokens = (*(engine(rule, backend=backend, dtype=dtype) for rule in (FAST, None)), segments()[0])
    for one in (e, plain):
        one.step(tokens)
    assert torch.equal(state(e).master, state(plain).master) and torch.equal(state(e).last, state(plain).prior - state(plain).master)
    if dtype == "bf16":
        assert torch.equal(state(e).working, state(plain).working)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.5, momentum=0.9), Adam(lr=0.01), AdamW(lr=0.01, decay=0.01), Muon(lr=0.01)], ids=repr)
@pytest.mark.parametrize("dtype,tolerance", [("fp32", 1e-3), ("bf16", 0.15)])
def test_native_updates_move_as_the_reference(optimizer, dtype, tolerance):
    truth, native = engine(optimizer=optimizer), engine(optimizer=optimizer, backend="cpu", dtype=dtype)
    for tokens in segments(4):
        truth.step(tokens)
        native.step(tokens)
    start = state(truth).prior
    assert torch.linalg.norm(state(native).master - state(truth).master) < tolerance * torch.linalg.norm(state(truth).master - start)
    assert state(truth).log_rate.abs().max() > 0.1
    if dtype == "bf16":
        assert torch.equal(state(native).working, state(native).master.to(torch.bfloat16))


def test_threads_change_no_bit():
    g, d = torch.randn(2, 300_000, generator=torch.Generator().manual_seed(0))
    offsets, found, threads = torch.tensor([0, 5, 5, 100_000, 300_000]), [], torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(arithmetic.cosines(g, d, offsets))
    torch.set_num_threads(threads)
    assert torch.equal(*found) and found[0][1] == 0
    expected = torch.nn.functional.cosine_similarity(g[5:100_000].double(), d[5:100_000].double(), 0)
    torch.testing.assert_close(found[0][2], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("adapt", [LoRA(2), (LoRA(2), LoRA(3), LoRA(2))], ids=["alike", "each"])
def test_streams_have_rates_of_their_own(adapt):
    steps, found = segments(6, 3), []
    e = engine(streams=3, adapt=adapt)
    for i, tokens in enumerate(steps):
        e.step(tokens, lengths=[T, T, 0] if i == 2 else None)
    for s in range(3):
        one = engine(adapt=adapt[s] if isinstance(adapt, tuple) else adapt)
        for i, tokens in enumerate(steps):
            if not (i == 2 and s == 2):
                one.step(tokens[s : s + 1])
        learner, slot = e.driver.step.learner(s), e.driver.step.slot(s)
        torch.testing.assert_close(learner.state.log_rate[slot], state(one).log_rate[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(learner.state.master[slot], state(one).master[0], rtol=0, atol=1e-9)
        found.append(state(one).log_rate[0])
    assert not torch.equal(found[0], found[1])


def test_a_gradient_that_is_not_finite_moves_nothing():
    e = engine(dtype="fp32")
    for tokens in segments(3):
        e.step(tokens)
    before = state_of(e)["tensors"]
    e.forward_backward(segments()[4])
    state(e).grad[0, 0] = math.nan
    assert e.optim_step().skipped == [True]
    for name in ("master", "last", "log_rate", "step"):
        assert torch.equal(getattr(state(e), name), before[f"learner.0.{name}"]), name


def test_a_segment_that_is_left_out_moves_no_rate():
    e, left = engine(learn_from=Selection(below=0.5)), 0
    first, *rest = segments(24)
    e.step(first)  # before which there was no step to look back at
    for tokens in rest:
        before = state(e).log_rate.clone()
        e.step(tokens)
        out = e.last.learned_tokens == [0]
        assert torch.equal(before, state(e).log_rate) == out
        left += out
    assert left > 0


def test_a_reset_brings_them_back():
    e = engine(streams=2, reset="document")
    for tokens in segments(4, 2):
        e.step(tokens)
    other = state(e).log_rate[1].clone()
    e.enter(0)
    assert not state(e).log_rate[0].any() and not state(e).last[0].any()
    assert torch.equal(state(e).log_rate[1], other) and other.any()
    e.reset(1)
    assert not state(e).log_rate.any()


CONFIGURATIONS = {
    "plain": {},
    "memory": {"memory": SegmentMemory(6, 2), "every": 2, "accumulate": True},
    "part": {"guard": "exact", "reset": Alarm(0.2, back=0.5), "optimizer": Adam(lr=0.2)},
    "ring": {"guard": "exact", "reset": Alarm(0.2, ring=2, every=2), "optimizer": Adam(lr=0.2)},
    "each": {"adapt": (LoRA(2), LoRA(3)), "optimizer": (SGD(lr=0.5), Adam(lr=0.02))},
    "shared": {"shared": True},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_it_goes_on_bit_for_bit(name, backend, tmp_path):
    options, steps = {**CONFIGURATIONS[name], "backend": backend, "dtype": "fp32"}, segments(12, 2, most=100)
    e, other, moved = engine(streams=2, **options), engine(streams=2, **options), False
    for i, tokens in enumerate(steps):
        moved |= any(bool(learner.state.log_rate.any()) for learner in e.learners)
        if i == 5:
            e.save(tmp_path)
            other.restore(tmp_path)
            snapshot = e.snapshot(0)
        if i < 5:
            e.step(tokens)
        else:
            assert torch.equal(e.step(tokens), other.step(tokens))
    assert_equal(state_of(e), state_of(other), but=("last",))
    assert moved
    scores = []
    for one in (e, other):
        one.rollback(0, snapshot)
        for tokens in steps[5:]:
            scores.append(one.step(tokens) if one.shared else one.step(tokens[:1], streams=[0]))
    assert all(torch.equal(a, b) for a, b in zip(scores[: len(scores) // 2], scores[len(scores) // 2 :]))


def test_alarms_of_those_were_raised():
    for name in ("part", "ring"):
        e = engine(streams=2, dtype="fp32", **CONFIGURATIONS[name])
        went = []
        for tokens in segments(12, 2, most=100):
            e.step(tokens)
            went += e.last.went_back.values()
        assert went, name


def test_rates_side_by_side():
    mixture = RateMixture(
        MODEL, [0.1, 0.5], adapt=LoRA(2), optimizer=SGD(clip=0), segment=T, backend="reference", dtype="fp64", hypergradient=FAST
    )
    one = engine()
    for tokens in segments(5):
        mixture.step(tokens)
        one.step(tokens)
    torch.testing.assert_close(state(mixture.engine).log_rate[1], state(one).log_rate[0], rtol=0, atol=1e-9)


def test_it_is_counted_and_said():
    e, plain = engine(), engine(None)
    for one in (e, plain):
        one.step(segments()[0])
    assert e.flops["update"] - plain.flops["update"] == arithmetic.flops(e.learned_parameters) == 10 * e.learned_parameters
    assert plain.flops["update"] == update_op.flops(plain.learned_parameters, plain.optimizer.rule())
    tensors = len(e.learners[0].layout.shapes)
    assert f"rates:  {FAST!r}, a factor for each of {tensors} tensors a stream, now 1 to 1" in e.explain()
    assert e.describe()["hypergradient"] == {"step": 0.5, "limit": 3.0} and "hypergradient" not in plain.describe()


def test_states_of_other_rules_are_refused(tmp_path):
    engine().save(tmp_path / "a")
    engine(None).save(tmp_path / "b")
    for e, name in ((engine(None), "a"), (engine(Hypergradient()), "a"), (engine(), "b")):
        with pytest.raises(ModelError, match="hypergradient"):
            e.restore(tmp_path / name)


def test_words():
    assert as_hypergradient("on") == as_hypergradient(Hypergradient) == Hypergradient() and as_hypergradient(None) is None
    for rule in (Hypergradient(), FAST, Hypergradient(limit=2.0)):
        assert as_hypergradient(rule.word) == rule


@pytest.mark.parametrize(
    "given,said",
    [
        ("off", "hypergradient='off': expected Hypergradient"),
        (0.02, "hypergradient=0.02: expected"),
        ("step=0", "hypergradient='step=0': step=0"),
        ("limit=1", "limit=1.0: expected a factor > 1"),
        ("step=1,step=2", "expected Hypergradient"),
    ],
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        as_hypergradient(given)


@pytest.mark.parametrize(
    "options,said",
    [
        ({"adapt": None, "optimizer": None}, "with adapt=None"),
        ({"adapt": Full()}, r"with adapt=Full\("),
        ({"adapt": RowSparse()}, r"with adapt=RowSparse\("),
        ({"static": True}, "with static=True"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, said):
    with pytest.raises(ValueError, match=f"hypergradient=.*{said}"):
        engine(**options)
