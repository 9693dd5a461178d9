"""What an engine holds: bounded whatever lengths it is given, and gone with it."""

import gc
import weakref

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import RMS, SGD, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.engine import drivers
from dynadapt.engine.settings import ROWS_A_THREAD, cpu_batch
from dynadapt.engine.workspace import Workspace
from dynadapt.model import random_model, tiny_config

MODELS = {family: random_model(tiny_config(family), seed=0, std=0.1) for family in ("llama", "qwen3", "gpt2")}
T = 12


def engine(family="llama", **options):
    return Engine(MODELS[family], **{"segment": T, "backend": "reference", "dtype": "fp32", "streams": 2, **options})


def text(length=T, rows=2, seed=0):
    return torch.randint(100, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2, "reproject")},
        {"adapt": LoRA(2), "reset": "auto", "optimizer": SGD(clip=0)},
        {"adapt": RowSparse(0.3), "optimizer": RMS(), "recompute": True},
        {"adapt": Full(), "memory": Overlap(3)},
        {"adapt": Full(targets="model"), "shared": True, "optimizer": Adam()},
    ],
    ids=str,
)
def test_a_dropped_engine_is_freed_at_once(options, static):
    if static and options.get("reset") == "auto" and isinstance(options["adapt"], RowSparse):
        pytest.skip("refused")
    gc.collect()
    gc.disable()
    try:
        e = engine(**options, static=static)
        if e.optimizer.uses_statistics:
            e.gather_statistics(list(text()))
        for seed in range(2):
            e.step(text(seed=seed), [T, 5])
        e.score(text())
        e.generate([1, 2], 2)
        assert repr(e.last)
        big = [*e.workspace.buffers.values(), *(learner.state.master for learner in e.learners), e.weights, e.decoder]
        gone = [weakref.ref(e), *map(weakref.ref, big)]
        del e, big
        assert not [ref() for ref in gone if ref() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("family,options", [("llama", {"memory": SegmentMemory(6, 2)}), ("gpt2", {"memory": Overlap(5)})])
def test_buffers_are_those_of_the_longest_segment(family, options, static, monkeypatch):
    monkeypatch.setattr(drivers, "MOST_RECORDINGS", 5)
    options = {**options, "adapt": LoRA(2), "static": static}
    one, many = engine(family, **options), engine(family, **options)
    for _ in range(3):  # until the context is full
        one.step(text())
    for length in [*range(1, T + 1), T, *range(T, 0, -1)]:
        many.step(text(length))
        assert not static or len(many.static.recordings) <= 5
    assert many.workspace.buffers.keys() == one.workspace.buffers.keys()
    assert many.workspace.nbytes == one.workspace.nbytes


@pytest.mark.parametrize("streams,width,threads,batch", [(4, 512, 2, 1), (4, 512, 3, 2), (64, 12, 1, 22), (5, 12, 1, 5), (3, 2048, 2, 1)])
def test_as_many_streams_go_together_as_keep_the_threads_at_work(streams, width, threads, batch):
    assert cpu_batch(streams, width, threads) == batch
    assert batch == streams or (batch - 1) * width < ROWS_A_THREAD * threads <= batch * width


def test_streams_beyond_that_take_no_buffers():
    """And score and learn the same to the bit."""
    _C = pytest.importorskip("dynadapt._C")
    segment = ROWS_A_THREAD * _C.num_threads()
    options = {"adapt": LoRA(2), "segment": segment, "streams": 3, "backend": "cpu", "dtype": "bf16"}
    alone = engine(**{**options, "streams": 1})
    few, all_together = engine(**options), engine(**options, batch=3)
    shared = engine(**options, shared=True)  # one update sees all rows
    assert (few.batch, all_together.batch, shared.batch, engine(**{**options, "backend": "reference"}).batch) == (1, 3, 3, 3)
    alone.step(text(segment, 1))
    for seed in range(2):
        assert torch.equal(few.step(text(segment, 3, seed)), all_together.step(text(segment, 3, seed)))
    assert_equal(state_of(few), state_of(all_together), but=["last"])
    assert few.workspace.nbytes == alone.workspace.nbytes < all_together.workspace.nbytes / 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {"adapt": LoRA(2)},
        {"adapt": LoRA(2, layers=range(1, 2), targets="mlp"), "memory": Overlap(3)},
        {"adapt": RowSparse(0.3)},
        {"adapt": Full(targets="model"), "shared": True},
    ],
    ids=str,
)
def test_native_kernels_make_again_what_was_not_kept_to_the_bit(family, options, dtype):
    pytest.importorskip("dynadapt._C")
    options = {**options, "backend": "cpu", "dtype": dtype}
    again, kept = engine(family, **options), engine(family, **options, recompute=False)
    assert again.recompute and not engine(family, **{**options, "backend": "reference", "dtype": "fp32"}).recompute
    for seed in range(2):
        assert torch.equal(again.step(text(seed=seed)), kept.step(text(seed=seed)))
    assert_equal(state_of(again), state_of(kept), but=["last"])
    assert again.workspace.nbytes < kept.workspace.nbytes


def test_recordings_are_bounded_for_each_set_of_weights(monkeypatch):
    monkeypatch.setattr(drivers, "MOST_RECORDINGS", 3)
    e = engine(adapt=Full(targets="mlp"), static=True)
    e.step(text())
    kept = dict(e.static.recordings)
    assert len(kept) == 2  # one a stream
    e.step(text(3))
    e.step(text())
    assert all(e.static.recordings[kind] is rec for kind, rec in kept.items())
    for length in range(1, T):
        e.step(text(length))
        assert len(e.static.recordings) <= 6


def test_a_buffer_that_grows_leaves_nothing_of_the_old_one():
    ws = Workspace(torch.float32)
    small = ws("a", 3)
    old, address = weakref.ref(ws.buffers["a", torch.float32]), small.data_ptr()
    assert ws("a", 3) is small and ws("a", 2).data_ptr() == address and ws.grown == 0
    del small
    assert ws("a", 2, 4).shape == (2, 4) and ws.grown == 1 and old() is None
    assert ws.nbytes == 32 and len(ws.buffers) == 1


def test_a_graph_of_outgrown_buffers_is_not_replayed(monkeypatch):
    """Without a GPU: what is recorded is the number of buffers that had grown by then."""
    e = engine(adapt=LoRA(2), static=True)
    e.step(text(4))
    ((kind, rec),) = e.static.recordings.items()
    replays = []
    rec.graph = type("Graph", (), {"replay": lambda self: replays.append(1)})()
    rec.grown = e.workspace.grown
    monkeypatch.setattr(e.static, "cuda", True)
    monkeypatch.setattr(e.static, "capture", True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: 1 / 0)
    assert e.static._replayed(rec, kind, None, 0.0) and replays == [1]
    e.score(text())  # of more rows than the step had
    assert rec.grown != e.workspace.grown
    with pytest.raises(ZeroDivisionError):  # it is captured anew, for which there is no GPU
        e.static._replayed(rec, kind, None, 0.0)
    assert replays == [1]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("op", ["embedding_forward", "linear_forward", "attention_forward", "activation_forward", "cross_entropy"])
def test_a_first_step_whose_op_fails_leaves_an_engine_that_works(op, backend, static):
    if static and backend == "cpu":
        pytest.skip("refused: the native kernels have no static step")
    options = {"adapt": LoRA(2), "memory": SegmentMemory(6, 2), "static": static, "backend": backend}
    e, twin = engine("llama", **options), engine("llama", **options)
    if op not in e.ops.choices:
        op = "norm_forward"
    choice = e.ops.choices[op]

    def fail(*args):
        raise OSError("out of paper")

    e.ops.choices[op] = type(choice)(choice.op, choice.backend, fail, choice.reason)
    with pytest.raises(OSError, match="out of paper"):
        e.step(text())
    assert e.last is None and not any(e.flops.values()) and not (static and e.static.recordings)
    e.ops.choices[op] = choice
    for seed in range(3):
        assert torch.equal(e.step(text(seed=seed)), twin.step(text(seed=seed)))
    assert e.flops == twin.flops and e.last.updated == twin.last.updated == [True, True]
    assert torch.equal(e.learners[0].state.master, twin.learners[0].state.master)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"adapt": LoRA(2), "memory": SegmentMemory(6, 2)},
        {"adapt": LoRA(2), "every": 2, "accumulate": True, "reset": "auto"},
        {"adapt": Full(targets="model"), "shared": True, "memory": Overlap(5)},
    ],
    ids=str,
)
def test_a_first_step_that_runs_out_of_memory_is_taken_again(options, static, monkeypatch):
    """Wherever among its buffers, down to the last one of its backward: all that learns is as it was."""
    e, twin = engine(**options, static=static), engine(**options, static=static)
    made, before = Workspace._view, state_of(e)
    failures = 0
    while True:
        calls = []

        def view(self, *args, calls=calls):
            calls.append(args)
            if self is e.workspace and len(calls) > 1:  # one buffer more each time
                raise torch.OutOfMemoryError("full")
            return made(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Workspace, "_view", view)
            try:
                nll = e.step(text(seed=failures % 3))
            except torch.OutOfMemoryError:
                assert e.calls.damage is None and e.last is None
                assert_equal(state_of(e), before)
            else:
                break
        failures = failures + 1
    assert failures > 20 and torch.equal(nll, twin.step(text(seed=failures % 3)))
    assert torch.equal(e.step(text(seed=5)), twin.step(text(seed=5)))
    assert_equal(state_of(e), state_of(twin), but=["last"])
