"""The step as two calls: the same bits, gradients that add up, and what becomes of one that waits."""

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import UnsupportedOp

MODELS = {family: random_model(tiny_config(family), seed=0, std=0.1) for family in ("llama", "qwen3", "gpt2", "gemma3")}
T = 8
HOW = pytest.mark.parametrize("backend,static", [("reference", False), ("reference", True), ("cpu", False)])


def engine(family="llama", **options):
    options = {"adapt": LoRA(2), "optimizer": Adam(lr=0.01), "segment": T, "backend": "reference", "dtype": "fp32", "streams": 3, **options}
    return Engine(MODELS[family], **options)


def text(rows=3, seed=0, length=T):
    return torch.randint(90, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def masters(e):
    return torch.cat([learner.state.master for learner in e.learners])


def waiting(e):
    return [s for s, state in enumerate(e.state) if state.waiting]


# ---- the two are the step


@HOW
@pytest.mark.parametrize(
    "family,options",
    [
        ("llama", {}),
        ("llama", {"dtype": "bf16", "memory": SegmentMemory(6, 2)}),
        ("qwen3", {"memory": SegmentMemory(6, 2, "reproject"), "optimizer": AdamW(lr=0.01, decay=0.01)}),
        ("gpt2", {"memory": Overlap(5), "recompute": True}),
        ("gemma3", {"memory": SegmentMemory(6, 2), "optimizer": SGD(lr=0.1, momentum=0.9, clip=0.5)}),
        ("llama", {"shared": True}),
        ("llama", {"batch": 2}),
        ("llama", {"adapt": RowSparse(0.3, every=2), "optimizer": Adam(lr=1e-3, decay=0.01)}),
        ("gpt2", {"adapt": Full(targets="mlp"), "streams": 2}),
        ("llama", {"adapt": Full(targets="model"), "shared": True}),
        ("qwen3", {"adapt": Full(targets="model"), "optimizer": RMS(lr=1e-3, clip=1.0), "shared": True}),
        ("llama", {"reset": 20}),
    ],
    ids=str,
)
def test_the_two_halves_are_the_step_bit_for_bit(family, options, backend, static):
    whole, halves = engine(family, backend=backend, static=static, **options), engine(family, backend=backend, static=static, **options)
    rows = whole.streams
    if whole.optimizer.uses_statistics:
        for e in (whole, halves):
            e.gather_statistics(list(text(2, seed=9)))
    for step, lengths in enumerate([None, [T, 3, 0][:rows], None]):
        given = {"tokens": text(rows, seed=step), "lengths": lengths, "weights": [1.0, 0.5, 2.0][:rows]}
        nll = whole.step(**given)
        assert torch.equal(halves.forward_backward(**given), nll)
        assert halves.last.updated == [False] * rows and halves.last.flops["update"] == 0
        assert halves.last.was_reset == whole.last.was_reset and halves.last.flops["backward"] == whole.last.flops["backward"]
        if any(whole.last.updated):
            report = halves.optim_step()
            assert report is halves.last and report.updated == whole.last.updated and report.grad_norm == whole.last.grad_norm
            assert report.flops == {**dict.fromkeys(report.flops, 0), "update": whole.last.flops["update"]}
        assert_equal(state_of(halves), state_of(whole), but=["last"])


@HOW
def test_streams_may_come_in_any_order_and_only_some_of_them(backend, static):
    whole, halves = (engine(backend=backend, static=static, streams=5, memory=SegmentMemory(6, 2)) for _ in range(2))
    for step, streams in enumerate([[0, 1], [4, 2], [2, 0], [1, 4]]):
        tokens = text(2, seed=step)
        assert torch.equal(whole.step(tokens, streams=streams), halves.forward_backward(tokens, streams=streams))
        halves.optim_step(streams=streams[::-1])
        assert_equal(state_of(halves), state_of(whole), but=["last"])


@HOW
@pytest.mark.parametrize("options", [{}, {"adapt": RowSparse(0.3)}, {"adapt": Full(), "shared": True}], ids=str)
def test_segments_of_one_update_are_the_accumulating_step(options, backend, static):
    options = {"every": 2, "accumulate": True, "backend": backend, "static": static, **options}
    whole, halves = engine(**options), engine(**options)
    for step in range(4):
        assert torch.equal(whole.step(text(seed=step)), halves.forward_backward(text(seed=step)))
        if step % 2:
            halves.optim_step()
        assert_equal(state_of(halves), state_of(whole), but=["last"])


@pytest.mark.parametrize("options", [{}, {"adapt": Full(targets="attn")}, {"adapt": RowSparse(0.3), "shared": True}], ids=str)
@pytest.mark.parametrize("optimizer", [SGD(lr=0.05, momentum=0.9, clip=0.0), SGD(lr=0.05, clip=0.0, decay=0.01)], ids=str)
def test_where_gradient_kernels_update_the_halves_differ_by_rounding(options, optimizer):
    """The step never has its gradient in memory there; the halves keep one."""
    whole, halves = (engine(static=True, optimizer=optimizer, **options) for _ in range(2))
    assert whole.driver.step.fused and whole.learners[0].state.grad is None
    for step in range(3):
        torch.testing.assert_close(halves.forward_backward(text(seed=step)), whole.step(text(seed=step)), rtol=1e-5, atol=1e-6)
        halves.optim_step()
        torch.testing.assert_close(masters(halves), masters(whole), rtol=1e-6, atol=1e-7)
        assert (halves.updates, halves.skipped_updates) == (whole.updates, whole.skipped_updates)
    assert halves.last.grad_norm[0] > 0 and whole.last.grad_norm[0] is None  # of a gradient that was never whole
    halves.step(text(seed=3))  # in the gradient kernels again
    whole.step(text(seed=3))
    torch.testing.assert_close(masters(halves), masters(whole), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_triton_halves_are_triton_steps():
    try:
        options = {"backend": "triton", "streams": 2, "segment": 5, "memory": SegmentMemory(4, 1)}
        whole, halves = engine(**options), engine(**options)
    except (ValueError, UnsupportedOp) as error:
        pytest.skip(str(error))
    for step in range(2):
        tokens = text(2, seed=step, length=5)
        assert torch.equal(whole.step(tokens), halves.forward_backward(tokens))
        halves.optim_step()
        assert_equal(state_of(halves), state_of(whole), but=["last"])


# ---- gradients add up


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"shared": True}, {"adapt": Full(), "streams": 2}, {"adapt": Full(targets="model"), "shared": True}], ids=str
)
def test_the_update_is_by_the_sum_of_the_segments_gradients(options, static):
    options = {"dtype": "fp64", "optimizer": SGD(lr=1.0, clip=0.0), "static": static, **options}
    adding = engine(**options)
    before, rows, moved = masters(adding).clone(), adding.streams, 0
    for step in range(3):
        adding.forward_backward(text(rows, seed=step))
        alone = engine(**options)
        alone.step(text(rows, seed=step))
        moved = moved + masters(alone) - before
    assert torch.equal(masters(adding), before)
    adding.optim_step()
    assert torch.allclose(masters(adding) - before, moved, rtol=0, atol=1e-12) and moved.abs().max() > 1e-3


@HOW
def test_each_stream_has_a_gradient_and_an_update_of_its_own(backend, static):
    """Streams with an older gradient go through the layers with others that have none."""
    options = {"backend": backend, "static": static, "memory": SegmentMemory(6, 2)}
    together, alone = engine(**options), [engine(streams=1, **options) for _ in range(3)]
    close = torch.equal if backend == "cpu" else lambda a, b: torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    for e in (together, *alone):
        e.step(text(e.streams, seed=9)[:1].repeat(e.streams, 1))  # there are gradients in the buffers, used up
    for step, streams in enumerate([[1], [0, 1], [1, 2]]):
        tokens = text(seed=step)
        nll = together.forward_backward(tokens[streams], streams=streams)
        for row, stream in enumerate(streams):
            assert close(alone[stream].forward_backward(tokens[stream : stream + 1])[0], nll[row])
    together.optim_step(streams=[1])
    alone[1].optim_step()
    assert waiting(together) == [0, 2] and together.last.updated == [False, True, False]
    together.optim_step()
    alone[0].optim_step(), alone[2].optim_step()
    assert not waiting(together) and all(close(masters(together)[s], masters(alone[s])[0]) for s in range(3))


@pytest.mark.parametrize("static", [False, True])
def test_the_sum_is_clipped_as_one_gradient(static):
    e = engine(static=static, streams=1, optimizer=SGD(lr=1.0, clip=1e-3))
    before = masters(e).clone()
    for step in range(3):
        e.forward_backward(text(1, seed=step))
    report = e.optim_step()
    assert report.grad_norm[0] > 1e-2 and float((masters(e) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_every_does_not_matter():
    seldom, often = engine(every=3), engine()
    for step in range(3):
        for e in (seldom, often):
            e.forward_backward(text(seed=step))
            e.optim_step()
    assert torch.equal(masters(seldom), masters(often)) and seldom.updates == 9
    seldom.step(text(seed=4))  # its fourth segment: not due
    assert seldom.last.updated == [False] * 3


@pytest.mark.parametrize("adapt", [LoRA(2), Full(targets="mlp")], ids=str)
def test_a_rate_of_one_update(adapt):
    options = {"adapt": adapt, "optimizer": SGD(lr=0.5, clip=0.0), "dtype": "fp64", "streams": 2}
    still, twice, plain = (engine(**options) for _ in range(3))
    before = masters(plain).clone()
    for e, lr in ((still, 0.0), (twice, 1.0), (plain, None)):
        e.forward_backward(text(2))
        e.optim_step(lr=lr)
        assert e.lr.tolist() == [0.5, 0.5]
    assert torch.equal(masters(still), before) and still.updates == 2
    assert torch.allclose(masters(twice) - before, 2 * (masters(plain) - before), rtol=1e-9, atol=0)


# ---- what becomes of a gradient that waits


@HOW
def test_a_gradient_that_is_not_finite_is_skipped_alone_and_gone(backend, static):
    e = engine(backend=backend, static=static)
    e.step(text())
    for buffer in {e.learners[0].state.master, e.learners[0].state.compute}:
        buffer[1, 5] = float("nan")
    nll = e.forward_backward(text(seed=1))
    assert nll[1].isnan().any() and nll[[0, 2]].isfinite().all()
    report = e.optim_step()
    assert report.skipped == [False, True, False] and report.updated == [True, False, True]
    assert e.skipped_updates == 1 and e.updates == 5 and not waiting(e)
    e.reset(1)
    e.forward_backward(text(seed=2))
    assert e.optim_step().updated == [True] * 3


@HOW
def test_a_segment_enters_memory_with_its_gradient(backend, static):
    options = {"backend": backend, "static": static, "memory": SegmentMemory(20, 2)}
    learning, scoring = engine(**options), engine(**{**options, "adapt": None, "optimizer": None})
    for step in range(3):
        nll = learning.forward_backward(text(seed=step))
        torch.testing.assert_close(nll, scoring.step(text(seed=step)), rtol=1e-5, atol=1e-6)  # no update: the weights are the prior's
    assert learning.decoder.memory.filled == scoring.decoder.memory.filled == [22] * 3
    learning.optim_step()
    assert learning.decoder.memory.filled == [22] * 3


def test_a_stream_that_goes_back_to_the_prior_has_none_left():
    counted = engine(reset=2 * T)
    counted.forward_backward(text(), [T, 3, 0])
    assert waiting(counted) == [0, 1] and counted.last.was_reset == [False] * 3
    counted.forward_backward(text(seed=1))
    assert waiting(counted) == [1, 2] and counted.last.was_reset == [True, False, False]
    counted.reset(1)
    assert waiting(counted) == [2] and counted.optim_step().updated == [False, False, True]
    by_document = engine(reset="document")
    by_document.forward_backward(text())
    by_document.enter(1)
    assert waiting(by_document) == [0, 2]
    kept = engine()
    kept.forward_backward(text())
    kept.enter(1)  # a document ends; what was learned from it is the stream's
    assert waiting(kept) == [0, 1, 2]
    shared = engine(shared=True)
    shared.forward_backward(text())
    shared.reset(2)
    assert not waiting(shared)


def test_a_change_of_the_text_takes_the_gradient_with_it():
    e = engine(reset="auto", streams=1, optimizer=Adam(lr=1e-6))
    easy, hard = sorted((text(1, seed=s) for s in range(30)), key=lambda t: float(e.score(t).mean()))[::29]
    for _ in range(12):
        e.step(easy)
    e.forward_backward(easy)
    assert waiting(e) == [0]
    e.forward_backward(hard)
    assert e.last.was_reset == [True] and not waiting(e)


@HOW
@pytest.mark.parametrize(
    "options",
    [
        {"memory": SegmentMemory(6, 2)},
        {"adapt": RowSparse(0.3)},
        {"adapt": Full(targets="model"), "shared": True},
        {"optimizer": SGD(lr=0.1, clip=0.0)},
        {"every": 2, "accumulate": True},
    ],
    ids=str,
)
def test_an_engine_is_saved_between_the_two(options, backend, static, tmp_path):
    options = {"backend": backend, "static": static, **options}
    e, again = engine(**options), engine(**options)
    e.step(text())
    if e.accumulate:
        e.step(text(seed=5))
    e.forward_backward(text(seed=1), [T, 5, 0])
    e.save(tmp_path)
    again.restore(tmp_path)
    assert waiting(again) == waiting(e) == [0, 1]
    for each in (e, again):
        each.forward_backward(text(seed=2), [0, T, T])
        each.optim_step()
        each.step(text(seed=3))
    assert_equal(state_of(e), state_of(again), but=["last", "flops"])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "call,op,at", [("forward_backward", "lora_gradient", 3), ("forward_backward", "attention_backward", 1), ("optim_step", "update", 1)]
)
def test_a_half_that_fails_is_damage_until_a_state_is_restored(call, op, at, static, tmp_path):
    e, twin = engine(static=static), engine(static=static)
    for each in (e, twin):
        each.forward_backward(text())
    e.save(tmp_path)
    choice = fail_at(e, op, at)
    with pytest.raises(OSError, match="out of paper"):
        e.forward_backward(text(seed=1)) if call == "forward_backward" else e.optim_step()
    e.ops.choices[op] = choice
    for again in (lambda: e.forward_backward(text()), lambda: e.optim_step(), lambda: e.step(text())):
        with pytest.raises(RuntimeError, match=f"a failed {call}"):
            again()
    e.restore(tmp_path)
    for each in (e, twin):
        each.forward_backward(text(seed=1))
        each.optim_step()
    assert_equal(state_of(e), state_of(twin), but=["last"])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("op", ["attention_forward", "cross_entropy"])
def test_a_half_that_fails_before_it_moves_anything_leaves_what_waits(op, static):
    e = engine(static=static)
    e.forward_backward(text())
    before, choice = state_of(e), fail_at(e, op, 1)
    with pytest.raises(OSError, match="out of paper"):
        e.forward_backward(text(seed=1))
    e.ops.choices[op] = choice
    assert e.calls.damage is None and waiting(e) == [0, 1, 2]
    assert_equal(before, state_of(e))


def fail_at(e, op, at):
    """The ``at``-th call of ``op`` raises; gives back what was there."""
    choice, calls = e.ops.choices[op], []

    def fail(*args):
        calls.append(op)
        if len(calls) == at:
            raise OSError("out of paper")
        return choice.function(*args)

    e.ops.choices[op] = type(choice)(choice.op, choice.backend, fail, choice.reason)
    return choice


# ---- refused by name


def test_a_step_does_not_write_over_a_gradient_that_waits():
    e = engine()
    e.forward_backward(text(2), streams=[0, 2])
    before = state_of(e)
    with pytest.raises(RuntimeError, match=r"^step: a gradient of forward_backward waits for streams \[2\]: call optim_step first"):
        e.step(text(2), streams=[2, 1])
    assert_equal(before, state_of(e))
    e.step(text(1), streams=[1])  # another stream's
    e.optim_step()
    e.step(text())
    shared = engine(shared=True)
    shared.forward_backward(text(1), streams=[0])
    with pytest.raises(RuntimeError, match=r"waits for streams \[0\]"):
        shared.step(text(1), streams=[1])
    adding = engine(accumulate=True, every=2)
    adding.forward_backward(text())
    adding.step(text(seed=1))  # adds to it
    assert adding.last.updated == [True] * 3


def test_what_can_not_be_done_is_refused_by_name_and_changes_nothing():
    e = engine()
    with pytest.raises(RuntimeError, match="^optim_step: no gradient waits; call forward_backward first$"):
        e.optim_step()
    e.forward_backward(text(2), streams=[0, 2])
    before = state_of(e)
    with pytest.raises(
        ValueError, match=r"^streams=\[1, 2\]: no gradient waits for \[1\]; expected streams of forward_backward, here \[0, 2\]$"
    ):
        e.optim_step(streams=[1, 2])
    with pytest.raises(ValueError, match="^lr=-1.0: expected a finite number >= 0$"):
        e.optim_step(lr=-1.0)
    assert_equal(before, state_of(e))
    with pytest.raises(RuntimeError, match=r"^gather_statistics: a gradient of streams \[0\] waits for its update"):
        rms = engine(adapt=Full(), optimizer=RMS(lr=1e-3, clip=1.0), streams=1)
        rms.gather_statistics(list(text(2)))
        rms.forward_backward(text(1))
        rms.gather_statistics(list(text(2)))
    with pytest.raises(ValueError, match=r"^adapt=None: nothing learns in this engine, expected LoRA\(\.\.\.\), RowSparse"):
        engine(adapt=None, optimizer=None).forward_backward(text())
    with pytest.raises(ValueError, match=r"^streams=\[0\]: expected None with shared=True"):
        shared = engine(shared=True)
        shared.forward_backward(text())
        shared.optim_step(streams=[0])
    with pytest.raises(ValueError, match="^reset='auto' with forward_backward and static=True"):
        engine(static=True, reset="auto").forward_backward(text())
    e.learn_no_more()
    with pytest.raises(RuntimeError, match="^forward_backward: learn_no_more has ended learning in this engine; step only scores$"):
        e.forward_backward(text())
    e.optim_step()  # what was asked for before
    e.step(text())


def test_rows_without_a_weight_leave_nothing_that_waits():
    e = engine(optimizer=SGD(lr=0.5, momentum=0.9))
    e.step(text())
    e.forward_backward(text(seed=1), weights=[[1.0] * T, [0.0] * T, [0.0] * T])
    assert waiting(e) == [0]
    e.forward_backward(text(seed=2), weights=[0.0, 0.0, 1.0])
    assert waiting(e) == [0, 2] and e.optim_step().updated == [True, False, True]


def test_what_it_holds_and_what_serves_it_is_said():
    fused = engine(static=True, optimizer=SGD(lr=0.1, clip=0.0))
    assert "update: in the gradient kernels; of optim_step a launch of its own" in fused.explain() and "gradients" not in fused.explain()
    resolved = set(fused.ops.choices)
    fused.forward_backward(text())
    fused.optim_step()
    assert set(fused.ops.choices) == resolved and "gradients" in fused.explain()
