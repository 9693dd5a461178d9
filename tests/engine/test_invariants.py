"""The engine's invariants on tiny random models of every family, on every backend."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, Lion, LoRA, Muon, Overlap, RowSparse, SegmentMemory
from dynadapt.model import random_model, tiny_config

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "gptneox"]
ADAPTS = {"none": None, "lora": LoRA(rank=3), "rows": RowSparse(density=0.2, every=2), "full": Full()}
MEMORIES = {"nothing": None, "keep": SegmentMemory(20, 2), "reproject": SegmentMemory(20, 2, "reproject"), "overlap": Overlap(9)}
LR = {"lora": 0.05, "rows": 0.02, "full": 0.005}
SEGMENT = 13
BACKENDS = [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")]


def model(family="llama"):
    return random_model(tiny_config(family), seed=0, std=0.1)


def engine(family="llama", adapt="lora", memory="nothing", backend="reference", dtype="fp32", **options):
    what = ADAPTS[adapt] if isinstance(adapt, str) else adapt
    if what is not None:
        options.setdefault("optimizer", Adam(lr=LR.get(adapt, 0.05)))
    held = MEMORIES[memory] if isinstance(memory, str) else memory
    return Engine(model(family), adapt=what, memory=held, segment=options.pop("segment", SEGMENT), backend=backend, dtype=dtype, **options)


def text(streams=1, length=4 * SEGMENT + 1, seed=0, family="llama"):
    return torch.randint(tiny_config(family).vocab_size, (streams, length), generator=torch.Generator().manual_seed(seed))


def scores(e, tokens, segment=SEGMENT):
    """NLL [S, length - 1] of the whole text, a ragged end included."""
    out = []
    for start in range(0, tokens.shape[1] - 1, segment):
        out.append(e.step(tokens[:, start : start + segment + 1]))
    return torch.cat(out, 1)


def fits(family, memory):
    return not (family == "gpt2" and memory in ("keep", "reproject"))


COMBINATIONS = [(f, a, m) for f in FAMILIES for a in ADAPTS for m in MEMORIES if fits(f, m)]


# 1. score before learning


@pytest.mark.parametrize(
    "family,adapt,memory", [c for c in COMBINATIONS if c[0] in ("llama", "qwen3", "gemma3", "gptneox") or c[2] == "overlap"]
)
@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_later_tokens_never_change_a_score(family, adapt, memory, backend, dtype):
    tokens = text(family=family)
    changed = tokens.clone()
    at = SEGMENT + 5  # inside the second segment
    changed[:, at:] = (changed[:, at:] + 1) % tiny_config(family).vocab_size
    a, b = (scores(engine(family, adapt, memory, backend, dtype), t) for t in (tokens, changed))
    assert torch.equal(a[:, : at - 1], b[:, : at - 1])  # score t predicts token t + 1
    assert not torch.equal(a[:, at:], b[:, at:])


@pytest.mark.parametrize("adapt", ["lora", "rows", "full"])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_lr_zero_is_static_evaluation_bit_for_bit(adapt, memory, backend, dtype):
    tokens = text()
    static = scores(engine(adapt="none", memory=memory, backend=backend, dtype=dtype), tokens)
    frozen = engine(adapt=adapt, memory=memory, backend=backend, dtype=dtype, optimizer=Adam(lr=0.0))
    assert torch.equal(static, scores(frozen, tokens)) and frozen.updates == 4


@pytest.mark.parametrize("adapt", ["lora", "rows", "full"])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.5, momentum=0.9),
        Adam(lr=5e-3),
        Adam(lr=5e-3, betas=(0.0, 0.99)),
        AdamW(lr=5e-3, decay=0.01),
        RMS(lr=1e-4, decay=1e-3),
        Lion(lr=1e-3, weight_decay=0.01),
        Muon(lr=5e-3, decay=0.01),
    ],
    ids=lambda o: f"{o.kind}-{o.decay}",
)
@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_every_optimizer_learns_a_repeated_text(adapt, optimizer, backend, dtype):
    if optimizer.kind == "rms" and adapt == "lora":
        with pytest.raises(ValueError, match="optimizer=RMS with adapt=LoRA"):
            engine(adapt=adapt, optimizer=optimizer, backend=backend, dtype=dtype)
        return
    e = engine(adapt=adapt, optimizer=optimizer, backend=backend, dtype=dtype)
    row = text(length=SEGMENT + 1)
    if optimizer.kind == "rms":
        with pytest.raises(RuntimeError, match="gather_statistics"):
            e.step(row)
        e = engine(adapt=adapt, optimizer=optimizer, backend=backend, dtype=dtype)
        assert e.gather_statistics(text(3, SEGMENT + 1, seed=5)) == 3
    first, *_, last = [e.step(row).mean() for _ in range(12)]
    assert last < first - 0.05, (first, last)


# 2. streams are independent


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_streams_together_equal_streams_alone_and_permute(adapt, memory, backend, dtype):
    tokens = text(3)
    together = scores(engine(adapt=adapt, memory=memory, backend=backend, dtype=dtype, streams=3), tokens)
    order = [2, 0, 1]
    permuted = scores(engine(adapt=adapt, memory=memory, backend=backend, dtype=dtype, streams=3), tokens[order])
    close = torch.equal if backend == "cpu" else lambda a, b: torch.allclose(a, b, atol=2e-5)
    assert close(permuted, together[order])
    for s in range(3):
        alone = scores(engine(adapt=adapt, memory=memory, backend=backend, dtype=dtype), tokens[s : s + 1])
        assert close(alone[0], together[s])


@pytest.mark.parametrize("adapt", ["lora", "rows", "full"])
@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_nan_in_one_stream_leaves_the_others_untouched(adapt, backend, dtype):
    tokens = text(2)
    clean = engine(adapt=adapt, memory="keep", backend=backend, dtype=dtype, streams=2)
    poisoned = engine(adapt=adapt, memory="keep", backend=backend, dtype=dtype, streams=2)
    learner = poisoned.learners[0]
    if adapt == "lora":
        learner.state.master[0].fill_(float("nan"))
        learner.state.compute[0].fill_(float("nan"))
    else:
        for matrices in learner.matrices.values():
            rows, width = matrices[0].shape
            matrices[0].update_rows(None, torch.full((rows, width), float("nan")))
    a, b = scores(clean, tokens), scores(poisoned, tokens)
    assert b[0].isnan().all() and torch.equal(a[1], b[1])
    assert poisoned.last.skipped == [True, False] and poisoned.last.updated == [False, True]
    assert poisoned.skipped_updates == 4 and poisoned.updates == 4


@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_documents_enter_and_leave_slots(backend, dtype):
    a, b, c = text(1, 40, 1), text(1, 27, 2), text(1, 30, 3)
    options = dict(adapt="lora", memory="keep", backend=backend, dtype=dtype, reset="document")
    alone = [scores(engine(**options), t)[0] for t in (a, b, c)]
    e = engine(streams=2, **options)
    queue, active, place, got = [b, c], [a, None], [0, 0], {0: [], 1: [], 2: []}
    ids, following = [0, None], 1
    while True:
        for s in range(2):
            if active[s] is None and queue:
                active[s], place[s], ids[s] = queue.pop(0), 0, following
                following += 1
                e.enter(s)
        if not any(t is not None for t in active):
            break
        tokens, lengths = torch.zeros(2, SEGMENT + 1, dtype=torch.int64), [0, 0]
        for s in range(2):
            if active[s] is not None:
                piece = active[s][0, place[s] : place[s] + SEGMENT + 1]
                tokens[s, : len(piece)], lengths[s] = piece, len(piece) - 1
        nll = e.step(tokens, lengths)
        for s in range(2):
            if active[s] is not None:
                got[ids[s]].append(nll[s, : lengths[s]])
                assert not nll[s, lengths[s] :].any()
                place[s] += lengths[s]
                if place[s] >= active[s].shape[1] - 1:
                    active[s] = None
    for i, expected in enumerate(alone):
        close = torch.equal if backend == "cpu" else lambda x, y: torch.allclose(x, y, atol=2e-5)
        assert close(torch.cat(got[i]), expected)


def test_shared_rows_train_one_set_of_weights_on_their_mean():
    tokens = text(2, SEGMENT + 1)
    e = engine(adapt="full", streams=2, shared=True, optimizer=SGD(lr=1.0, clip=0.0), dtype="fp64")
    before = e.learners[0].state.master.clone()
    e.step(tokens)
    together = before - e.learners[0].state.master
    singles = []
    for s in range(2):
        one = engine(adapt="full", optimizer=SGD(lr=1.0, clip=0.0), dtype="fp64")
        one.step(tokens[s : s + 1])
        singles.append(before - one.learners[0].state.master)
    assert torch.allclose(together, sum(singles) / 2, atol=1e-9) and e.updates == 1 and together.any()


# 3. segmenting is invisible


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "granite", "phi3", "gptneox"])
@pytest.mark.parametrize("refresh", ["keep", "reproject"])
@pytest.mark.parametrize("segment", [1, 7, 13, 52])
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp32", 2e-5), ("cpu", "fp32", 2e-5), ("cpu", "bf16", 0.05)])
def test_memory_as_long_as_the_past_equals_one_full_forward(family, refresh, segment, backend, dtype, tolerance):
    tokens = text(2, family=family)
    options = dict(family=family, adapt="none", backend=backend, dtype=dtype, streams=2)
    whole = scores(engine(segment=52, **options), tokens, 52)
    pieces = scores(engine(memory=SegmentMemory(60, 2, refresh), segment=segment, **options), tokens, segment)
    assert torch.allclose(whole, pieces, atol=tolerance)


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
@pytest.mark.parametrize("refresh", ["keep", "reproject"])
@pytest.mark.parametrize("sinks", [1, 3])
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp32", 2e-5), ("cpu", "fp32", 2e-5), ("cpu", "bf16", 0.05)])
def test_sinks_alone_are_the_text_s_beginning_in_front_of_each_segment(family, refresh, sinks, backend, dtype, tolerance):
    tokens = text(2, family=family)
    options = dict(family=family, adapt="none", backend=backend, dtype=dtype, streams=2)
    pieces = scores(engine(memory=SegmentMemory(0, sinks, refresh), segment=13, **options), tokens, 13)
    windows = [torch.cat([tokens[:, : sinks if start else 0], tokens[:, start : start + 14]], 1) for start in range(0, 52, 13)]
    alone = [scores(engine(segment=w.shape[1] - 1, **options), w, w.shape[1] - 1)[:, -13:] for w in windows]
    assert torch.allclose(torch.cat(alone, 1), pieces, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_overlap_as_long_as_the_past_equals_one_full_forward(family):
    tokens = text(family=family)
    whole = scores(engine(family, "none", segment=52), tokens, 52)
    assert torch.allclose(whole, scores(engine(family, "none", Overlap(52)), tokens), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("begin", [1, 3])
def test_what_an_overlap_begins_with_is_the_text_s_beginning(family, begin, context=9):
    tokens = text(2, family=family)
    found = scores(engine(family, "none", Overlap(context, begin), segment=13, streams=2), tokens, 13)
    wanted = []
    for start in range(0, 52, 13):
        before = (
            tokens[:, : start + 1] if start < context else torch.cat([tokens[:, :begin], tokens[:, start - context + begin : start + 1]], 1)
        )
        window = torch.cat([before, tokens[:, start + 1 : start + 14]], 1)
        wanted.append(scores(engine(family, "none", segment=window.shape[1] - 1, streams=2), window, window.shape[1] - 1)[:, -13:])
    assert torch.allclose(torch.cat(wanted, 1), found, atol=2e-5)


# 4. backward is right (ops: tests/ops, tests/native; against autograd: tests/engine/test_parity.py)


def learned_step(family, adapt, memory, tokens, direction=None, amount=0.0, window=None):
    """Second segment's mean NLL and its gradient [1, P], in float64, with the learned parameters moved along ``direction``.

    Memory is a constant of that gradient: ``window`` holds the projected keys and values that a first call returned.
    """
    adapt = RowSparse(0.3, "fixed") if adapt == "rows" else adapt
    e = engine(family, adapt, memory, dtype="fp64", optimizer=SGD(lr=0.0, clip=0.0))
    learner, state = e.learners[0], e.learners[0].state

    def move(by):
        state.master += by
        if learner.owns_weights:
            learner._write_back()

    move(0.05 * torch.randn(state.master.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    e.step(tokens[:, : SEGMENT + 1])
    if direction is not None:
        move(amount * direction)
    seen, project = [], e.decoder._reproject

    def reproject(batch, learner, i):
        keys, values = e.decoder.memory.keys[i].rows, e.decoder.memory.values[i].rows
        if window is None:
            project(batch, learner, i)
            seen.append((keys.clone(), values.clone()))
        else:
            keys.copy_(window[i][0])
            values.copy_(window[i][1])

    e.decoder._reproject = reproject
    update, kept = learner.update, {}
    learner.update = lambda *a: (kept.update(gradient=state.grad.clone()), update(*a))[1]
    nll = e.step(tokens[:, SEGMENT : 2 * SEGMENT + 1]).mean()
    return float(nll), kept["gradient"], seen or None


@pytest.mark.parametrize("family,adapt,memory", [*[c for c in COMBINATIONS if c[1] != "none"], ("gemma2", "lora", "keep")])
def test_engine_gradient_equals_finite_differences(family, adapt, memory):
    """The directional derivative of a segment's NLL along the engine's own gradient is the gradient's norm."""
    tokens, h = text(family=family), 1e-5
    _, gradient, window = learned_step(family, adapt, memory, tokens)
    along = gradient / gradient.norm()
    up, down = (learned_step(family, adapt, memory, tokens, along, sign * h, window)[0] for sign in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx(float(gradient.norm()), rel=1e-5)


# 5. the ledger is exact


LEDGER_OPTIONS = [{}, {"streams": 2}, {"every": 2}, {"every": 2, "accumulate": True}, {"streams": 2, "shared": True}]


@pytest.mark.parametrize(
    "family,adapt,memory,options", [(*c, o) for c in COMBINATIONS for o in LEDGER_OPTIONS if not ("every" in o and c[1] == "none")], ids=str
)
def test_ledger_equals_torchs_flop_counter(family, adapt, memory, options):
    e = engine(family, adapt, memory, **options)
    tokens = text(options.get("streams", 1), 3 * SEGMENT + 6, family=family)
    with FlopCounterMode(display=False) as counter:
        scores(e, tokens)
    flops = e.flops
    assert flops["forward"] + flops["backward"] + flops["recompute"] == counter.get_total_flops()
    assert (flops["update"] > 0) == (adapt != "none")


@pytest.mark.parametrize(
    "what",
    [
        LoRA(rank=2, targets="mlp", layers=range(1, 2)),
        LoRA(rank=2, targets="attn", layers=range(0, 1)),
        RowSparse(0.1, targets="mlp"),
        Full(targets="attn", layers=range(1, 2)),
    ],
    ids=str,
)
def test_nothing_below_the_lowest_learner_is_computed(what):
    e, everything = engine(adapt=what), engine(adapt=type(what)(**({"rank": 2} if isinstance(what, LoRA) else {})))
    tokens = text()
    with FlopCounterMode(display=False) as counter:
        scores(e, tokens)
    flops = e.flops
    assert flops["forward"] + flops["backward"] + flops["recompute"] == counter.get_total_flops()
    scores(everything, tokens)
    assert flops["backward"] < everything.flops["backward"]


def test_every_k_pays_backward_only_when_it_updates():
    tokens = text()
    one, two, both = (engine(**o) for o in ({}, {"every": 2}, {"every": 2, "accumulate": True}))
    for e in (one, two, both):
        scores(e, tokens)
    assert (one.updates, two.updates, both.updates) == (4, 2, 2)
    assert two.flops["backward"] * 2 == one.flops["backward"] == both.flops["backward"]


# 7. a run can be killed


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("memory,reset", [(m, "never") for m in MEMORIES] + [("keep", "auto"), ("keep", 20)])
@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_save_and_restore_give_bit_equal_remaining_scores(tmp_path, adapt, memory, backend, dtype, reset):
    tokens = text(2)
    options = dict(adapt=adapt, memory=memory, backend=backend, dtype=dtype, streams=2, reset=reset)
    if adapt in ("rows", "full"):
        options["optimizer"] = AdamW(lr=0.01, decay=0.01)
    whole = engine(**options)
    if adapt != "none":
        whole.set_lr(1, 0.007)
    head, tail = tokens[:, : 2 * SEGMENT + 1], tokens[:, 2 * SEGMENT :]
    scores(whole, head)
    whole.save(tmp_path / "state")
    expected = scores(whole, tail)
    resumed = engine(**options)
    resumed.restore(tmp_path / "state")
    assert torch.equal(expected, scores(resumed, tail))
    assert resumed.flops == whole.flops and resumed.updates == whole.updates


def test_restore_refuses_another_configuration(tmp_path):
    engine().save(tmp_path)
    with pytest.raises(ValueError, match="segment=13.*has 5"):
        engine(segment=5).restore(tmp_path)
    with pytest.raises(ValueError, match="adapt"):
        engine(adapt="none").restore(tmp_path)
