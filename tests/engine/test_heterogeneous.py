"""Streams of different ranks, scales, targets, layers and optimizers in one step: each has the bits of an engine of its kind alone."""

import json
import random
from copy import deepcopy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, Lion, LoRA, Muon, Overlap, RowSparse, SegmentMemory
from dynadapt.interop.publish import publish
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.ops import decisions
from dynadapt.ops.matrix_update import product_flops

pytestmark = pytest.mark.filterwarnings("ignore")
T = 12
MODELS = {family: random_model(tiny_config(family), seed=1, std=0.1) for family in ("llama", "qwen3", "gptneox", "qwen3_5", "gemma3")}
WAYS = [
    (LoRA(rank=4), Adam(lr=0.03)),
    (LoRA(rank=16, alpha=5, targets="attn"), SGD(lr=0.5, momentum=0.9)),
    (LoRA(rank=3, targets=["q", "down"], rank_pattern={"q": 7}, alpha_pattern={"down": 2}), Muon(lr=0.01, decay=0.01)),
    (LoRA(rank=5, layers=range(2, 3), rslora=True), Lion(lr=0.002, decay=0.02)),
    (LoRA(rank=1, targets="mlp", keep_a=True), AdamW(lr=0.02, clip=0.0)),
    (LoRA(rank=4), Adam(lr=0.01)),  # the first's, at another rate
    (LoRA(rank=4), Adam(lr=0.03, clip=0.1)),
]


def engine(ways, family="llama", model=None, **options):
    adapts, optimizers = zip(*ways)
    options = {"segment": T, "dtype": "fp32", "backend": "cpu", "streams": len(ways), "reset": "document", **options}
    return Engine(model or MODELS[family], adapt=list(adapts), optimizer=list(optimizers), **options)


def text(rows, seed=0, vocabulary=64):
    return torch.randint(vocabulary, (rows, T + 1), generator=torch.Generator().manual_seed(seed))


def learned(e, stream):
    """All that a stream's next steps depend on, as tensors."""
    snapshot = e.snapshot(stream)
    memory = {f"memory {name}": t for part in snapshot.memories for name, t in part.items()}
    return {**snapshot.learned, **memory, "lr": snapshot.lr}


def assert_alike(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name, t in one.items():
        assert torch.equal(t, other[name]), name


def drive(e, alone, steps=5, seed=0, lengths=(T, T, 5, 1, 0)):
    """The same texts, ragged and in every order, for all streams of ``e`` and each in an engine of its own: the same bits, always."""
    rng = random.Random(seed)
    for step in range(steps):
        streams = rng.sample(range(e.streams), rng.randint(1, e.streams))
        rows = text(len(streams), 100 * seed + step)
        counts = [rng.choice(lengths) for _ in streams]
        scores = e.step(rows, counts, streams)
        for i, stream in enumerate(streams):
            assert torch.equal(alone[stream].step(rows[i : i + 1], counts[i : i + 1]), scores[i : i + 1]), (step, stream)
        if rng.random() < 0.4:
            stream = rng.randrange(e.streams)
            act = rng.choice([lambda e, s: e.enter(s), lambda e, s: e.reset(s), lambda e, s: e.set_lr(s, 0.007)])
            act(e, stream)
            act(alone[stream], 0)
    for stream, own in enumerate(alone):
        assert_alike(learned(e, stream), learned(own, 0))


OPTIONS = {
    "memory": dict(memory=SegmentMemory(8, sinks=2)),
    "reproject": dict(memory=SegmentMemory(8, sinks=2, refresh="reproject")),
    "overlap": dict(memory=Overlap(4)),
    "every": dict(every=2, accumulate=True),
    "auto": dict(reset="auto"),
    "tokens": dict(reset=30),
    "batch": dict(batch=2),
    "kept": dict(recompute=False),
    "bf16": dict(dtype="bf16", memory=SegmentMemory(8)),
    "int8": dict(base="int8"),
    "int8 bf16": dict(base="int8", dtype="bf16"),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_stream_has_the_bits_of_an_engine_of_its_kind(options):
    ways = WAYS if options in ("memory", "bf16") else WAYS[:5]
    drive(engine(ways, **OPTIONS[options]), [engine([way], **OPTIONS[options]) for way in ways])


@pytest.mark.parametrize("family", [name for name in MODELS if name != "llama"])
def test_in_every_kind_of_layer(family):
    ways = [
        (LoRA(rank=4), Adam(lr=0.03)),
        (LoRA(rank=9, targets="attn", layers=range(1, 2)), SGD(lr=0.5)),
        (LoRA(rank=2, targets=["down"]), Adam(lr=0.01)),
    ]
    lengths = (T, 5, 1, 0)
    drive(engine(ways, family), [engine([way], family) for way in ways], steps=3, lengths=lengths)


def test_random_companions_change_no_bit():
    rng, way, scores = random.Random(5), WAYS[2], []
    for others in range(4):
        ways = [way, *(rng.choice(WAYS) for _ in range(others))]
        e = engine(ways, memory=SegmentMemory(8))
        steps = [e.step(torch.cat([text(1, seed), text(others, 50 + 7 * seed + others)]))[0] for seed in range(3)]
        scores.append(torch.cat(steps))
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_streams_that_differ_in_rate_alone_are_of_one_kind():
    e = engine([WAYS[0], WAYS[5]])
    assert len(e.learners) == 1 and e.driver.step.mixed is None and e.lr.tolist() == pytest.approx([0.03, 0.01])
    drive(e, [engine([WAYS[0]]), engine([WAYS[5]])], steps=3)
    e = Engine(MODELS["llama"], adapt=[LoRA(rank=2)] * 2, optimizer=[None, "adam"], streams=2, segment=T)
    assert e.adapt == LoRA(rank=2) and e.optimizer == Adam()


def test_one_of_the_two_may_be_all_streams():
    for given in (dict(adapt=LoRA(rank=3), optimizer=[SGD(lr=0.5), Adam()]), dict(adapt=[LoRA(rank=3), LoRA(rank=5)], optimizer="adam")):
        e = Engine(MODELS["llama"], **given, streams=2, segment=T, dtype="fp32", backend="cpu")
        assert len(e.learners) == 2
        scores = [e.step(text(2, seed)) for seed in range(2)]
        assert torch.isfinite(torch.cat(scores)).all() and e.updates == 4


def test_a_bad_stream_stays_alone():
    ways = WAYS[:3]
    good, bad = engine(ways), engine(ways)
    way = bad.driver.step
    way.learner(1).state.master[way.slot(1)] = float("nan")
    way.learner(1).state.compute[way.slot(1)] = float("nan")
    for seed in range(2):
        first, second = good.step(text(3, seed)), bad.step(text(3, seed))
        assert torch.equal(first[[0, 2]], second[[0, 2]]) and second[1].isnan().all()
    assert bad.skipped_updates == 2 and good.skipped_updates == 0


def test_a_step_in_two_is_a_step():
    whole, halves = engine(WAYS[:5]), engine(WAYS[:5])
    for seed in range(3):
        rows = text(5, seed)
        assert torch.equal(whole.step(rows), halves.forward_backward(rows))
        assert halves.optim_step([0, 3]).updated == [True, False, False, True, False]
        halves.optim_step()
    for stream in range(5):
        assert_alike(learned(whole, stream), learned(halves, stream))
    assert whole.flops == halves.flops and whole.updates == halves.updates == 15


def test_saved_and_restored_it_goes_on_with_the_same_bits(tmp_path):
    ways, options = WAYS[:5], dict(memory=SegmentMemory(8, sinks=1))
    e = engine(ways, **options)
    for seed in range(2):
        e.step(text(5, seed))
    e.save(tmp_path)
    fresh = engine(ways, **options)
    fresh.restore(tmp_path)
    for seed in range(2, 4):
        assert torch.equal(e.step(text(5, seed)), fresh.step(text(5, seed)))
    for stream in range(5):
        assert_alike(learned(e, stream), learned(fresh, stream))
    with pytest.raises(ModelError, match="saved with adapt="):
        engine([ways[1], ways[0], *ways[2:]], **options).restore(tmp_path)
    record = json.loads((tmp_path / "engine.json").read_text())
    assert [way["rank"] for way in record["engine"]["adapt"]] == [4, 16, 3, 5, 1]


def test_each_stream_writes_and_takes_its_own_adapter(tmp_path):
    e = engine(WAYS[:4])
    for seed in range(3):
        e.step(text(4, seed))
    e.save(tmp_path)
    for stream, way in enumerate(WAYS[:4]):
        own = engine([way])
        own.load_adapter(tmp_path / f"adapter-{stream}")
        assert torch.equal(own.score(text(1)), e.score(text(1), stream))
        fresh = engine(WAYS[:4])
        fresh.enter(stream, adapter=tmp_path / f"adapter-{stream}", prior=not way[0].keep_a)
        fresh.reset(stream)
        assert torch.equal(fresh.score(text(1), stream), e.score(text(1), stream))
    settings = json.loads((tmp_path / "adapter-1" / "adapter_config.json").read_text())
    assert settings["r"] == 16 and settings["lora_alpha"] == 5
    with pytest.raises(ModelError, match="adapter has r=16"):
        e.load_adapter(tmp_path / "adapter-1", stream=0)


def test_a_snapshot_goes_to_streams_of_its_kind():
    e, alone = engine([WAYS[0], WAYS[1], WAYS[0]]), engine([WAYS[1]])
    for seed in range(2):
        e.step(text(3, seed))
    taken = e.snapshot(1)
    alone.rollback(0, taken)
    e.rollback(2, e.snapshot(0))
    rows = text(1, 9).repeat(3, 1)
    scores = e.step(rows)
    assert torch.equal(alone.step(rows[:1]), scores[1:2]) and torch.equal(scores[0], scores[2])
    with pytest.raises(ValueError, match="snapshot: taken in an engine with adapt="):
        e.rollback(0, taken)
    with pytest.raises(ValueError, match="adapter: taken in an engine with adapt="):
        e.enter(0, adapter=taken)
    e.enter(1, adapter=taken)


def test_backward_stops_at_the_lowest_of_a_passs_streams():
    ways = [(LoRA(rank=2, layers=range(2, 3)), SGD()), (LoRA(rank=2, targets=["down"], layers=range(1, 2)), SGD()), (LoRA(rank=2), SGD())]
    e = engine(ways)
    assert [e.driver.step.lowest(streams) for streams in ([0], [1], [0, 1], [0, 1, 2])] == [
        (2, "qkv"),
        (1, "down"),
        (1, "down"),
        (0, "qkv"),
    ]
    assert e.lowest == (0, "qkv")
    costs = []
    for streams in ([0], [1], [2]):
        before = e.flops
        e.step(text(1), streams=streams)
        costs.append({phase: n - before[phase] for phase, n in e.flops.items()})
        alone = engine([ways[streams[0]]])
        alone.step(text(1))
        assert costs[-1] == alone.flops
    assert costs[0]["backward"] < costs[1]["backward"] < costs[2]["backward"]


def test_the_ledger_is_what_torch_counts():
    e = engine(WAYS[:4], backend="reference")
    e.step(text(4))
    e.ledger.totals = dict.fromkeys(e.ledger.totals, 0)
    with FlopCounterMode(display=False) as counter:
        e.step(text(4, 1))
    assert counter.get_total_flops() == sum(n for phase, n in e.flops.items() if phase != "update") + muons_products(e)


def muons_products(e):
    return sum(
        len(way.streams) * product_flops(learner.layout.parts.matrices)
        for way, learner in zip(e.settings.ways, e.learners)
        if way.optimizer.rule().arithmetic.prepared
    )


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_other_backends_compute_the_same(backend):
    ways = [WAYS[0], (LoRA(rank=6, targets=["q", "down"]), SGD(lr=0.5)), (LoRA(rank=1, targets=["down"]), Lion(lr=0.01))]
    small = random_model(tiny_config("llama", layers=1), seed=1, std=0.1)  # an interpreter runs the kernels
    native, other = (engine(ways, model=small, backend=name) for name in ("cpu", backend))
    for seed in range(1 if backend == "triton" else 3):
        assert torch.allclose(native.step(text(3, seed)), other.step(text(3, seed)), atol=2e-4)
    for mine, theirs in zip(native.learners, other.learners):
        assert torch.allclose(mine.state.master, theirs.state.master, atol=2e-3 if backend == "reference" else 2e-2)
    assert ("widest" if backend == "triton" else "each costs its own ranks") in other.explain()


def test_fixed_shapes_reset_streams_of_several_kinds_on_the_device():
    ways = [WAYS[0], (LoRA(rank=2, targets="mlp"), SGD(lr=2.0, clip=0.0)), WAYS[0]]
    fixed, eager = (engine(ways, backend="reference", reset="auto", static=static) for static in (True, False))
    old = decisions.WARMUP
    decisions.WARMUP = 2
    try:
        for seed in range(4):
            rows = text(3, seed) if seed < 3 else text(3, seed).flip(1)
            if seed == 3:  # as if the past had been easy
                for e in (fixed, eager):
                    e.driver.step.changes.table[1:3, 1] = torch.tensor([0.1, 1e-4], dtype=torch.float64)
            assert torch.allclose(fixed.step(rows), eager.step(rows), atol=1e-6)
    finally:
        decisions.WARMUP = old
    assert fixed.last.was_reset == eager.last.was_reset == [False, True, False]
    for stream in range(3):
        way = fixed.driver.step
        mine = way.learner(stream).state.master[way.slot(stream)]
        assert torch.allclose(mine, eager.driver.step.learner(stream).state.master[way.slot(stream)], atol=1e-6)
    assert torch.equal(fixed.learners[1].state.master[0], fixed.learners[1].initial)  # stream 1 has gone back


def test_it_says_what_it_is():
    e = engine([WAYS[0], WAYS[1], WAYS[0]])
    assert "of streams 0, 2 | LoRA(rank=16" in repr(e) and "of stream 1" in repr(e)
    said = e.explain()
    counts = [learner.learned_parameters for learner in e.learners]
    assert (
        f"2 ways to learn in one step, of {counts[0]:,}, {counts[1]:,} parameters a stream" in said and "each costs its own ranks" in said
    )
    assert e.learned_parameters == max(counts)
    assert e.describe()["adapt"][1]["rank"] == 16 and len(e.describe()["optimizer"]) == 3
    assert "holds" in said and e.explain(time=True)


def test_bad_input_is_refused_by_name():
    make = lambda **options: Engine(MODELS["llama"], **{"segment": T, "streams": 2, **options})  # noqa: E731
    two = [LoRA(rank=2), LoRA(rank=3)]
    refusals = [
        (dict(adapt=[LoRA()]), r"adapt has 1 entries with streams=2; expected one a stream"),
        (dict(adapt=two, optimizer=[Adam()] * 3), r"optimizer has 3 entries with streams=2"),
        (dict(adapt=[LoRA(), RowSparse()]), r"adapt\[1\]=RowSparse\(.*expected LoRA"),
        (dict(adapt=[Full(), Full()]), r"adapt\[0\]=Full\("),
        (dict(adapt=[LoRA(), None]), r"adapt\[1\]=None"),
        (dict(adapt=[LoRA(), "lor"]), r"adapt=.*, of stream 1: adapt='lor'"),
        (dict(adapt=two, optimizer=[Adam(), "adm"]), r"optimizer=.*, of stream 1: optimizer='adm'"),
        (dict(adapt=two, shared=True), r"adapt of each stream with shared=True"),
        (dict(adapt=RowSparse(), optimizer=[Adam(), SGD()]), r"optimizer of each stream with adapt=RowSparse\("),
        (dict(optimizer=[Adam(), SGD()]), r"optimizer of each stream with adapt=None"),
        (dict(adapt=two, optimizer=[Adam(), RMS()]), r"optimizer=RMS with adapt=LoRA"),
        (dict(adapt=[LoRA(layers=range(9)), LoRA()]), r"layers=0:9: the model has layers 0:3"),
    ]
    for options, expected in refusals:
        with pytest.raises(ValueError, match=expected):
            make(**options)


def test_every_other_call_takes_the_streams_own(tmp_path):
    e = engine(WAYS[:3])
    for seed in range(2):
        e.step(text(3, seed))
    for stream, way in enumerate(WAYS[:3]):
        alone = engine([way])
        for seed in range(2):
            alone.step(text(3, seed)[stream : stream + 1])
        assert torch.equal(alone.score(text(2, 5)), e.score(text(2, 5), stream))
        prompt = text(1, 6)[0].tolist()
        assert e.generate(prompt, 4, stream=stream, end=False).ids == alone.generate(prompt, 4, end=False).ids
    published = publish(e, tmp_path, "mixed", stream=1)
    assert json.loads((published.path / "adapter_config.json").read_text())["r"] == 16
    e.learn_no_more()
    updates = e.updates
    e.step(text(3, 9))
    assert e.updates == updates


def test_a_copy_is_an_engine_of_its_own():
    e = engine(WAYS[:2], backend="reference")
    e.step(text(2))
    copied = deepcopy(e)
    for seed in (1, 2):
        assert torch.equal(copied.step(text(2, seed)), e.step(text(2, seed)))
    e.reset(1)
    copied.step(text(2, 3))
    assert not torch.equal(copied.score(text(1), 1), e.score(text(1), 1))
