"""A snapshot is all that a stream's next steps depend on: after going back to it they have the same bits, here or elsewhere."""

import random

import pytest
import torch
from engine.test_whole_steps import MODELS, draw, good
from engine_states import assert_equal, state_of

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import UnsupportedOp

T = 6
MODEL = MODELS["llama"]
HYBRID = random_model(tiny_config("qwen3_5"), seed=0, std=0.1)
BASE = {"segment": T, "backend": "reference", "dtype": "fp32", "streams": 3, "adapt": LoRA(2), "optimizer": Adam(lr=0.05)}


def engine(**options):
    return Engine(MODEL, **{**BASE, **options})


def text(seed=0, rows=3, length=T):
    return torch.randint(MODEL.config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def stepped(steps=3, **options):
    e = engine(**options)
    if e.optimizer is not None and e.optimizer.uses_statistics:
        e.gather_statistics(list(text(9)))
    for seed in range(steps):
        e.step(text(seed))
    return e


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))


def check(seed: int) -> str:
    """Run A, snapshot, run B, go back, run B again; then B once more on another stream."""
    rng = random.Random(seed)
    family, options = draw(rng)
    if options["backend"] == "triton":
        return "slow"
    try:
        e = Engine(MODELS[family], **options)
    except (ValueError, UnsupportedOp):
        return "refused"
    if e.optimizer is not None and e.optimizer.uses_statistics:
        e.gather_statistics([good(e, seed)["tokens"][0]])
    for i in range(rng.randrange(4)):
        e.step(**good(e, 7 * seed + i))
        if rng.random() < 0.3:
            e.enter(rng.randrange(e.streams), None if e.adapt is None else rng.choice([None, 0.02]))
    taken = [e.snapshot(s) for s in range(e.streams)]
    sizes = [snapshot.nbytes for snapshot in taken]
    later = [good(e, 7 * seed + 4 + i) for i in range(3)]
    first, after = [e.step(**each) for each in later], state_of(e)
    for _ in range(2):
        for s, snapshot in enumerate(taken):
            e.rollback(s, snapshot)
        assert all(same(a, e.step(**each)) for a, each in zip(first, later))
        again = state_of(e)
        assert_equal(after, again, but=["last", "flops", "counts"])
        assert after["plain"]["counts"]["streams"] == again["plain"]["counts"]["streams"]
    if not e.shared:
        check_elsewhere(e, Engine(MODELS[family], **{**options, "streams": 1}), rng, taken, seed)
    assert sizes == [snapshot.nbytes for snapshot in taken]
    return "stepped"


def check_elsewhere(e: Engine, alone: Engine, rng: random.Random, taken, seed: int) -> None:
    """Another stream, and the one stream of another engine, go on from a snapshot as the stream itself does."""
    s, t = rng.randrange(e.streams), rng.randrange(e.streams)
    if alone.optimizer is not None and alone.optimizer.uses_statistics:
        alone.gather_statistics([good(e, seed)["tokens"][0]])
    rows = [good(e, 7 * seed + 11 + i)["tokens"][:1] for i in range(3)]
    scores = []
    for other, stream in ((e, s), (e, t), (alone, 0)):
        other.rollback(stream, taken[s])
        scores.append([other.step(row, streams=[stream]) for row in rows])
    for other in scores[1:]:
        assert all(same(a, b) for a, b in zip(scores[0], other))


def run(seeds) -> dict[str, int]:
    found = {"slow": 0, "refused": 0, "stepped": 0}
    for seed in seeds:
        try:
            found[check(seed)] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {draw(random.Random(seed))}: {error!r}") from error
    return found


@pytest.mark.filterwarnings("ignore:window of")
def test_going_back_gives_the_same_bits():
    found = run(range(30))
    assert found["stepped"] >= 8, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:window of")
def test_going_back_gives_the_same_bits_at_length():
    found = run(range(30, 1500))
    assert found["stepped"] >= 400, found


KINDS = {
    "lora": {},
    "lora, bf16": {"backend": "cpu", "dtype": "bf16"},
    "lora, gradients added up": {"every": 2, "accumulate": True},
    "lora, resets": {"reset": 2 * T},
    "lora, static": {"static": True, "reset": "auto", "memory": SegmentMemory(8, 1)},
    "rows": {"adapt": RowSparse(0.3, every=2), "optimizer": Adam(lr=0.01, decay=0.1)},
    "rows, bf16": {"adapt": RowSparse(0.3, every=2), "backend": "cpu", "dtype": "bf16"},
    "rows, statistics": {"adapt": RowSparse(0.3), "optimizer": RMS()},
    "full": {"adapt": Full(), "memory": Overlap(3)},
    "full, bf16": {"adapt": Full(), "backend": "cpu", "dtype": "bf16", "optimizer": SGD(momentum=0.9)},
    "whole model": {"adapt": Full("model"), "shared": True, "optimizer": AdamW(), "memory": SegmentMemory(8, 1, "reproject")},
    "whole model, bf16": {"adapt": Full("model"), "backend": "cpu", "dtype": "bf16", "memory": SegmentMemory(8, 1)},
    "nothing": {"adapt": None, "optimizer": None, "memory": SegmentMemory(8, 1)},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_stream_goes_back_alone(options):
    """The others go on from where they are; with shared weights all rows go back."""
    e, twin = stepped(**options), stepped(**options)
    taken, first = e.snapshot(1), e.step(text(5))
    e.step(text(6))
    e.rollback(1, taken)
    again = e.step(text(5))
    for seed in (5, 6, 5):
        others = twin.step(text(seed))
    assert torch.equal(again[1], first[1])
    assert torch.equal(again[[0, 2]], (first if e.shared else others)[[0, 2]])


def test_recorded_passes_stay_and_read_what_was_put_back():
    e = stepped(static=True, memory=SegmentMemory(8, 1))
    places = lambda: [t.data_ptr() for t in e.learners[0].state.tensors().values()] + [e.decoder.memory.key_stack.data_ptr()]  # noqa: E731
    taken, kinds, before = e.snapshot(0), dict(e.static.recordings), places()
    first = e.step(text(5))
    e.rollback(0, taken)
    assert e.static.recordings == kinds and places() == before
    assert torch.equal(e.step(text(5))[0], first[0])


def test_its_size_is_one_slot():
    e = stepped(memory=SegmentMemory(8, 1))
    learner, memory = e.learners[0], e.decoder.memory
    remembered = 2 * memory.key_stack[:, 0, : memory.filled[0]].numel()
    assert e.snapshot(0).nbytes == 4 * (4 * learner.layout.size + 1 + 1 + remembered)  # master, gradient, moments; count; rate
    assert f"{e.snapshot(0)!r}" == f"StreamSnapshot(3 segments into the document, {e.snapshot(0).nbytes / 1e6:,.1f} MB)"


def test_a_stream_that_never_stepped_is_the_prior_again():
    e, fresh = engine(), engine()
    taken = e.snapshot(2)
    e.step(text())
    e.rollback(2, taken)
    assert torch.equal(e.learners[0].state.master[2], fresh.learners[0].state.master[2])
    assert torch.equal(e.step(text(1)[2:], streams=[2]), fresh.step(text(1)[2:], streams=[2]))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"adapt": LoRA(3)}, "snapshot: taken in an engine with adapt="),
        ({"optimizer": Adam(lr=0.01)}, "snapshot: taken in an engine with optimizer="),
        ({"memory": SegmentMemory(8, 1)}, "snapshot: taken in an engine with memory=None; this one has "),
        ({"backend": "cpu"}, "snapshot: taken in an engine with backend='reference'; this one has 'cpu'"),
        ({"shared": True}, "snapshot: taken in an engine with shared=False; this one has True"),
    ],
    ids=str,
)
def test_another_configuration_is_refused(change, said):
    taken, other = stepped().snapshot(1), engine(**change)
    before = state_of(other)
    with pytest.raises(ValueError, match=f"^{said}"):
        other.rollback(0, taken)
    assert_equal(before, state_of(other))


def test_what_is_no_snapshot_of_this_model_is_refused():
    e = engine()
    with pytest.raises(ValueError, match="^snapshot=None: expected what Engine.snapshot gave"):
        e.rollback(0, None)
    with pytest.raises(ValueError, match="^stream=3: expected 0..2"):
        e.rollback(3, e.snapshot(0))
    other = Engine(MODELS["qwen2"], **BASE)
    with pytest.raises(ValueError, match="^snapshot: taken in an engine of another model"):
        e.rollback(0, other.snapshot(0))
    assert e.calls.damage is None


def test_statistics_are_part_of_what_was_learned():
    options = {"adapt": RowSparse(0.3), "optimizer": RMS()}
    e = engine(**options)
    before = e.snapshot(0)
    e.gather_statistics(list(text(9)))
    after = e.snapshot(0)
    with pytest.raises(ValueError, match="^snapshot: taken before gradient statistics were gathered"):
        e.rollback(0, before)
    with pytest.raises(ValueError, match="^snapshot: taken after gradient statistics were gathered"):
        engine(**options).rollback(0, after)
    first = e.step(text())
    e.gather_statistics(list(text(8)))  # another text's
    e.rollback(0, after)
    assert torch.equal(e.step(text())[0], first[0])


@pytest.mark.parametrize("static", [False, True], ids=["separate", "in the gradient kernels"])
@pytest.mark.parametrize("adapt", [LoRA(2), Full("attn")], ids=["lora", "full"])
def test_a_gradient_that_waits_is_part_of_it(static, adapt):
    """Before and behind one, in its own engine and in one that never had one."""
    options = {
        "backend": "cpu",
        "static": static,
        "adapt": adapt,
        "optimizer": Adam(lr=0.05),
        "memory": None if static else SegmentMemory(8, 1),
        "streams": 2,
    }
    e, other = stepped(0, **options), engine(**options)
    e.step(text(0, rows=2))
    settled, first = e.snapshot(0), e.step(text(1, rows=2))[0]
    e.rollback(0, settled)
    e.forward_backward(text(1, rows=2))
    waits = e.snapshot(0)
    results = []
    for each in (e, e, other):
        each.rollback(0, waits)
        each.optim_step([0])
        results.append(each.step(text(2, rows=1), streams=[0])[0])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    e.rollback(0, settled)
    with pytest.raises(ValueError, match="no gradient waits for \\[0\\]"):
        e.optim_step([0])
    assert torch.equal(e.step(text(1, rows=1), streams=[0])[0], first)
    assert torch.equal(e.step(text(2, rows=1), streams=[0])[0], results[0])


def test_states_of_the_gated_delta_rule_are_part_of_it():
    e = Engine(HYBRID, **{**BASE, "backend": "cpu"}, memory=SegmentMemory(8, 1))
    e.step(text(0) % 113)
    taken, first = e.snapshot(1), e.step(text(1) % 113)
    assert {"delta.states", "delta.rows"} <= taken.memories[0].keys()
    e.rollback(1, taken)
    assert torch.equal(e.step(text(1) % 113)[1], first[1])
    e.rollback(2, taken)
    assert torch.equal(e.step(text(1)[[1]] % 113, streams=[2])[0], first[1])
