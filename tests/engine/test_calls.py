"""One call at a time on one engine; a call that fails half-way leaves an engine that says so and serves again once restored."""

import copy
import gc
import inspect
import os
import re
import threading
import weakref
from contextlib import contextmanager

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import RMS, SGD, Adam, Engine, Full, LoRA, RowSparse, SegmentMemory, publish
from dynadapt.engine.generation import generate, score_continuations
from dynadapt.engine.settings import FIXED
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import UnsupportedOp

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T = 6
BASE = {"segment": T, "backend": "reference", "dtype": "fp32", "streams": 2, "adapt": LoRA(2), "memory": SegmentMemory(8, 1)}


def engine(**options):
    return Engine(MODEL, **{**BASE, **options})


def text(seed=0, rows=2, length=T):
    return torch.randint(MODEL.config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


TAKEN = engine().snapshot(0)
CALLS = {
    "step": lambda e, to: e.step(text()),
    "forward_backward": lambda e, to: e.forward_backward(text()),
    "optim_step": lambda e, to: e.optim_step(),
    "score": lambda e, to: e.score(text()),
    "enter": lambda e, to: e.enter(0),
    "reset": lambda e, to: e.reset(1),
    "snapshot": lambda e, to: e.snapshot(1),
    "rollback": lambda e, to: e.rollback(1, TAKEN),
    "set_lr": lambda e, to: e.set_lr(0, 0.1),
    "learn_no_more": lambda e, to: e.learn_no_more(),
    "save": lambda e, to: e.save(to / "other"),
    "restore": lambda e, to: e.restore(to / "saved"),
    "load_adapter": lambda e, to: e.load_adapter(to / "saved" / "adapter-0"),
    "generate": lambda e, to: e.generate([1, 2], 2),
    "score_continuations": lambda e, to: score_continuations(e, [[1, 2, 3]], [1]),
    "gather_statistics": lambda e, to: e.gather_statistics(list(text())),
}


def test_every_public_method_that_touches_state_is_here():
    reading = {"describe", "explain", "without_memory"}  # the last one: part of calls
    methods = {name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_")}
    assert methods - reading == CALLS.keys() - {"score_continuations"}


class Slow(threading.Thread):
    """An engine in the middle of a step, in a thread of its own, until ``go``."""

    def __init__(self, e):
        super().__init__(name="slow")
        self.e, self.inside, self.go, self.result = e, threading.Event(), threading.Event(), None
        forward = e.decoder.forward

        def waiting(*args, **options):
            if threading.current_thread() is self:
                self.inside.set()
                assert self.go.wait(60)
            return forward(*args, **options)

        e.decoder.forward = waiting

    def run(self):
        self.result = self.e.step(text())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("static", [False, True])
def test_a_second_call_is_refused_while_one_runs(call, static, tmp_path):
    e, alone = engine(static=static), engine(static=static)
    e.save(tmp_path / "saved")
    slow = Slow(e)
    slow.start()
    assert slow.inside.wait(60)
    try:
        with pytest.raises(RuntimeError, match=rf"^{call}: the engine is in another call \(step in thread 'slow'\)"):
            CALLS[call](e, tmp_path)
    finally:
        slow.go.set()
        slow.join(60)
    assert torch.equal(slow.result, alone.step(text()))
    assert torch.equal(e.step(text(1)), alone.step(text(1)))  # nothing of the refused call stayed
    assert_equal(state_of(e), state_of(alone), but=["last"])


def test_threads_that_hammer_one_engine_get_right_scores_or_refusals():
    e, refused, scored, unexpected = engine(streams=1, memory=None, adapt=None), [], [], []
    expected = {seed: e.step(text(seed, 1)) for seed in range(6)}
    start = threading.Barrier(3)

    def hammer(first):
        start.wait(60)
        for i in range(25):
            seed = (first + i) % 6
            try:
                scored.append(torch.equal(e.step(text(seed, 1)), expected[seed]))
            except RuntimeError as error:
                (refused if "must not overlap" in str(error) else unexpected).append(error)

    threads = [threading.Thread(target=hammer, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not unexpected and scored and all(scored) and len(scored) + len(refused) == 75


def test_threads_may_take_turns():
    e, alone, results = engine(), engine(), []
    for seed in range(3):
        thread = threading.Thread(target=lambda seed=seed: results.append(e.step(text(seed))))
        thread.start()
        thread.join(60)
    assert all(torch.equal(a, alone.step(text(seed))) for seed, a in enumerate(results)) and len(results) == 3


def test_engines_in_different_threads_keep_their_own_scratch_memory():
    from dynadapt.kernels import common

    seen = {}

    def look(name):
        mine = common.Scratch()
        with common.scratch_of(mine):
            meet.wait(60)
            seen[name] = common.scratch("cpu", "test", 3), mine
            meet.wait(60)

    meet = threading.Barrier(2)
    threads = [threading.Thread(target=look, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(list(mine.buffers.values())[0] is buffer for buffer, mine in seen.values()) and len(seen) == 2


@pytest.mark.parametrize("call", CALLS)
def test_a_callback_may_not_call_the_engine(call, tmp_path):
    e = engine()
    e.save(tmp_path / "saved")
    before = state_of(e)
    with pytest.raises(RuntimeError, match=rf"^{call}: the engine is in another call \(generate in thread"):
        generate(e, [1, 2], 3, lambda ids: CALLS[call](e, tmp_path))
    assert_equal(before, state_of(e), but=["flops"])  # tokens generated before are counted
    assert len(generate(e, [1, 2], 3)) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_must_make_its_own(tmp_path):
    e = engine()
    child = os.fork()
    if not child:
        try:
            e.step(text())
        except RuntimeError as error:
            os._exit(7 if "step: this engine was made in process" in str(error) and "forked" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    e.step(text())


def test_a_copy_is_an_engine_of_its_own():
    e = engine()
    e.step(text())
    other = copy.deepcopy(e)
    with e.calls.call("step"):
        nll = other.step(text(1))
    assert torch.equal(e.step(text(1)), nll)


# ---- failures in the middle


def failing(e, op, at):
    """The ``at``-th call of ``op`` raises; gives back what was there."""
    choice, calls = e.ops.choices[op], []

    def fail(*args):
        calls.append(op)
        if len(calls) == at:
            raise OSError("out of paper")
        return choice.function(*args)

    e.ops.choices[op] = type(choice)(choice.op, choice.backend, fail, choice.reason)
    return choice


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "op,at,whole",
    [
        ("attention_forward", 1, True),
        ("linear_forward", 7, True),
        ("cross_entropy", 1, True),
        ("attention_backward", 2, False),
        ("lora_gradient", 3, False),
        ("update", 1, False),
    ],
)
def test_a_step_that_fails_has_changed_nothing_or_says_so(op, at, whole, static, tmp_path):
    e, twin = engine(static=static), engine(static=static)
    for each in (e, twin):
        each.step(text())
    e.save(tmp_path)
    before, choice = state_of(e), failing(e, op, at)
    with pytest.raises(OSError, match="out of paper"):
        e.step(text(1))
    e.ops.choices[op] = choice
    if whole:
        assert e.calls.damage is None
        assert_equal(before, state_of(e))
    else:
        with pytest.raises(
            RuntimeError, match=r"^step: a failed step \(OSError: out of paper\) left this engine's weights half moved; restore"
        ):
            e.step(text(1))
        for name, call in CALLS.items():
            if name not in ("restore", "gather_statistics"):
                with pytest.raises(RuntimeError, match=f"^{name}: a failed step"):
                    call(e, tmp_path)
        e.restore(tmp_path)
    assert torch.equal(e.step(text(1)), twin.step(text(1)))
    assert_equal(state_of(e), state_of(twin), but=["last"])


def test_nothing_is_published_of_half_moved_weights(tmp_path):
    e = engine()
    failing(e, "update", 1)
    with pytest.raises(OSError):
        e.step(text())
    with pytest.raises(RuntimeError, match="publish: a failed step"):
        publish(e, tmp_path, "cat")
    assert not list(tmp_path.glob("**/adapter_*")) and not list(tmp_path.glob("cat-v*"))


def test_a_second_pass_that_fails_is_no_whole_step():
    e = engine(adapt=Full(targets="mlp"), memory=None)  # streams with weights of their own go one by one
    failing(e, "embedding_forward", 2)
    with pytest.raises(OSError):
        e.step(text())
    with pytest.raises(RuntimeError, match="a failed step"):
        e.step(text())


@pytest.mark.parametrize("static", [False, True])
def test_statistics_that_fail_are_named_and_restored(static, tmp_path):
    options = {"adapt": RowSparse(0.3), "optimizer": RMS(lr=1e-3, clip=1.0), "streams": 1, "static": static}
    e, twin = engine(**options), engine(**options)
    e.save(tmp_path)
    choice = failing(e, "weight_gradient", 5)
    with pytest.raises(OSError):
        e.gather_statistics(list(text(3)))
    e.ops.choices["weight_gradient"] = choice
    with pytest.raises(RuntimeError, match="score: a failed gather_statistics"):
        e.score(text())
    e.restore(tmp_path)
    for each in (e, twin):
        each.gather_statistics(list(text(3)))
    assert torch.equal(e.step(text(1, 1)), twin.step(text(1, 1)))
    assert_equal(state_of(e), state_of(twin), but=["last"])
    e.restore(tmp_path)  # from before the statistics: they are gone again
    with pytest.raises(RuntimeError, match="gather_statistics"):
        e.step(text(1, 1))


def test_a_restore_that_fails_half_way_leaves_no_engine_that_goes_on(tmp_path, monkeypatch):
    e = engine()
    e.save(tmp_path)
    e.step(text())
    with monkeypatch.context() as patch:
        patch.setattr(type(e.decoder.memory), "load", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            e.restore(tmp_path)
    with pytest.raises(RuntimeError, match="a failed restore"):
        e.step(text())
    e.restore(tmp_path)
    assert torch.equal(e.step(text()), engine().step(text()))


# ---- statistics that nobody gathered


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("adapt,shared", [(RowSparse(0.3), False), (Full(), True), (Full(targets="model"), True)], ids=str)
def test_statistics_are_asked_for_before_anything_moves(static, backend, clip, adapt, shared):
    if static and backend == "cpu":
        return
    e = engine(adapt=adapt, optimizer=RMS(clip=clip), shared=shared, backend=backend, static=static, every=3)
    before = state_of(e)
    with pytest.raises(RuntimeError, match=r"^optimizer=RMS\(.*no gradient statistics yet: call Engine.gather_statistics"):
        e.step(text())
    assert_equal(before, state_of(e))
    e.score(text())
    e.gather_statistics(list(text(5)))
    e.step(text())


# ---- construction that fails


@pytest.mark.parametrize("late", ["Captured", "Decoder", "FrozenWeights"])
def test_an_engine_that_fails_late_leaves_nothing_behind(late, monkeypatch):
    from dynadapt.engine import engine as module
    from dynadapt.engine.learners import make
    from dynadapt.kernels import common

    threads, held, scratch = torch.get_num_threads(), [], dict(common._active.scratch.buffers)

    class Learner(make.LoraLearner):
        def __init__(self, *args):
            super().__init__(*args)
            held.append(weakref.ref(self.state.master))

    monkeypatch.setattr(make, "LoraLearner", Learner)
    monkeypatch.setattr(module, late, lambda *args: 1 / 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            engine(static=True)
    gc.collect()
    assert len(held) == 3 and not any(ref() is not None for ref in held)
    assert torch.get_num_threads() == threads and common._active.scratch.buffers == scratch
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_what_fails_is_refused_before_weights_are_read(monkeypatch):
    read = []
    model = copy.copy(MODEL)
    monkeypatch.setattr(model, "tensor", lambda name: read.append(name))
    for error, message, options in (
        (
            UnsupportedOp,
            "^backend='cpu' with dtype='fp32', static=True: nothing serves memory_advance, .*; use static=False$",
            {"backend": "cpu", "static": True},
        ),
        (ValueError, "^layers=0:99: the model has layers 0:", {"adapt": LoRA(layers=range(99))}),
        (TypeError, "unexpected keyword argument 'lr'$", {"lr": 1}),
        (ValueError, "^batch=0: expected an integer of at least 1, or None for as many as are worth it$", {"batch": 0}),
        (ValueError, "^base='float8' with backend='cpu': the native kernels have no float8 products", {"base": "float8", "backend": "cpu"}),
    ):
        with pytest.raises(error, match=message):
            Engine(model, **{**BASE, **options})
    assert not read


# ---- modes of torch that the caller is in


MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "grad": torch.enable_grad,
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cpu"},
        {"static": True, "reset": "auto"},
        {"adapt": Full(targets="model"), "shared": True},
        {"adapt": RowSparse(0.3), "optimizer": RMS(lr=1e-3, clip=1.0)},
    ],
    ids=str,
)
def test_a_mode_of_the_caller_changes_nothing(mode, options):
    twin, tokens, segments, prompt = engine(**options), [text(seed).tolist() for seed in range(3)], text(9).tolist(), [1, 2]
    statistics = (lambda e: e.gather_statistics(segments)) if "optimizer" in options else (lambda e: None)
    made = [engine(**options)]
    with MODES[mode]():
        made.append(engine(**options))
        statistics(made[1])
        first = [e.step(tokens[0]) for e in made[1:]]
        scored, generated = made[1].score(tokens[1]), generate(made[1], prompt, 3)
    statistics(made[0]), statistics(twin)
    with MODES[mode]():
        first.append(made[0].step(tokens[0]))
    expected = twin.step(tokens[0])
    assert all(torch.equal(nll, expected) and not nll.requires_grad and nll.device.type == "cpu" for nll in first)
    assert torch.equal(twin.score(tokens[1]), scored) and generate(twin, prompt, 3) == generated
    for seed in (1, 2):
        expected = twin.step(tokens[seed])
        assert all(torch.equal(e.step(tokens[seed]), expected) for e in made)
    for e in made:
        assert_equal(state_of(e), state_of(twin), but=["last", "flops"])


# ---- what is handed in and out stays the caller's


@pytest.mark.parametrize("static", [False, True])
def test_tokens_and_scores_belong_to_the_caller(static):
    e, twin = engine(static=static, optimizer=SGD(lr=0.1)), engine(static=static, optimizer=SGD(lr=0.1))
    kept = []
    for seed in range(3):
        tokens = text(seed)
        handed = tokens.clone()
        nll = e.step(handed)
        kept.append((nll, nll.clone()))
        handed.zero_()
        assert torch.equal(nll, twin.step(tokens))
        nll.fill_(7.0) if seed == 1 else None
    assert all(torch.equal(now, then) for i, (now, then) in enumerate(kept) if i != 1)
    assert_equal(state_of(e), state_of(twin), but=["last"])


@pytest.mark.parametrize("optimizer", [Adam(), SGD()])
def test_a_row_of_length_zero_rests(optimizer):
    e = engine(optimizer=optimizer)
    before = state_of(e)
    assert torch.equal(e.step(text(), lengths=[0, 0]), torch.zeros(2, T))
    assert_equal(before, state_of(e), but=["last"])
    a = e.step(text(), lengths=[T, 0])
    assert not a[1].any() and e.last.updated == [True, False]


# ---- what an engine was made with


def test_a_setting_that_is_set_is_refused_by_name_and_changes_nothing():
    e, twin = engine(), engine()
    assert FIXED.keys() > set(inspect.signature(Engine).parameters) - {"model"}
    before = repr(e), e.describe()
    for name, instead in FIXED.items():
        with pytest.raises(AttributeError, match=rf"^engine\.{name} = 5: what an engine was made with stays .*; {re.escape(instead)}$"):
            setattr(e, name, 5)
    assert (repr(e), e.describe()) == before and "learn_no_more()" in FIXED["every"] and "reset=" in FIXED["reset_policy"]
    assert torch.equal(e.step(text()), twin.step(text()))
    e.learn_no_more()
    assert e.every == e.settings.every == e.describe()["every"] > 10**9
    e.mine = "a caller's own"  # as on any object
    copied = copy.deepcopy(e)
    assert copied.mine == e.mine and copied.every == e.every


def test_rows_of_one_target_are_scored():
    e = engine(backend="cpu")
    tokens = text(rows=5, length=1)
    assert torch.equal(e.score(tokens), torch.cat([e.score(row[None]) for row in tokens]))
