"""With a guard the score is never above the prior's by more than its bound, whatever the text and the rate, and still comes before learning."""

import math
from dataclasses import replace

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import SGD, Adam, AdamW, Engine, Full, Guard, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.adapt.mixture import regret
from dynadapt.model import ModelError, random_model, tiny_config

FAMILIES = ("llama", "gpt2", "qwen3_5")
MODELS = {family: random_model(tiny_config(family), seed=0, std=0.1) for family in FAMILIES}
T = 8
MEMORIES = {"none": None, "keep": SegmentMemory(6, 2), "reproject": SegmentMemory(6, 2, "reproject"), "overlap": Overlap(5)}
ADAPTS = {"lora": LoRA(2), "rows": RowSparse(0.3), "full": Full(), "model": Full("model")}
ROUNDING = 2.0**-24  # of a score to float32


def engine(family="llama", **options):
    given = {"adapt": LoRA(2), "optimizer": Adam(lr=0.05), "guard": "exact", "backend": "reference", "dtype": "fp32", "segment": T}
    return Engine(MODELS[family], **{**given, "streams": 2, **options})


def text(seed=0, rows=2, length=T, most=100):
    return torch.randint(most, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def scored(e, steps, lengths=None):
    """[steps, R, T] of the mixture, the prior and the adapted model, each in float64."""
    kinds = [], [], []
    for tokens in steps:
        mixed = e.step(tokens, lengths)
        for kind, values in zip(kinds, (mixed, e.last.nll_static, e.last.nll_adapted)):
            kind.append(values.double())
    return [torch.stack(kind) for kind in kinds]


def assert_bound(e, mixed, static, adapted):
    for row in range(mixed.shape[1]):
        total, bound = mixed[:, row].sum().item(), e.last.guard_bound[row]
        best = min(each[:, row].nan_to_num(math.inf, math.inf).sum().item() for each in (static, adapted))
        assert total <= best + bound + ROUNDING * mixed[:, row].abs().sum().item() + 1e-9


@pytest.mark.parametrize(
    "adapt, memory, static",
    [
        ("lora", "keep", False),
        ("lora", "reproject", True),
        ("rows", "overlap", False),
        ("rows", "keep", True),
        ("full", "none", True),
        ("full", "reproject", False),
        ("model", "keep", False),
    ],
)
def test_the_prior_is_a_static_engine(adapt, memory, static):
    """To the bit, beside any way to learn, with ragged rows; what is adapted is what it is without a guard."""
    options = {"memory": MEMORIES[memory], "static": static, "streams": 3}
    e = engine(adapt=ADAPTS[adapt], **options)
    bare, still = engine(adapt=ADAPTS[adapt], guard=None, **options), engine(adapt=None, optimizer=None, guard=None, **options)
    for seed, lengths in enumerate(([T, 3, 0], [5, 0, T], None, [0, 1, 2], None)):
        if seed == 3:
            for each in (e, bare, still):
                each.enter(1)
        tokens = text(seed, 3)
        mixed = e.step(tokens, lengths)
        assert torch.equal(e.last.nll_static, still.step(tokens, lengths))
        assert torch.equal(e.last.nll_adapted, bare.step(tokens, lengths))
        counted = torch.arange(T) < torch.tensor(lengths or [T] * 3)[:, None]
        assert not mixed[~counted].any() and torch.isfinite(mixed[counted]).all()
        low, high = torch.minimum(e.last.nll_static, e.last.nll_adapted), torch.maximum(e.last.nll_static, e.last.nll_adapted)
        assert ((mixed >= low - 1e-5) & (mixed <= high + 1e-5)).all(), "a mean of two probabilities lies between them"
    assert e.flops["forward"] == bare.flops["forward"] + still.flops["forward"]
    assert e.flops["recompute"] == bare.flops["recompute"] + still.flops["recompute"]
    assert (e.flops["backward"], e.flops["update"]) == (bare.flops["backward"], bare.flops["update"])
    assert e.last.flops["forward"] == bare.last.flops["forward"] + still.last.flops["forward"]


LOWEST = 2
DEEP = {layers: random_model(tiny_config("llama", layers=layers), seed=0, std=0.1) for layers in (2, 4)}


@pytest.mark.parametrize(
    "adapt, memory, options",
    [
        (LoRA(2), "keep", {"backend": "cpu", "dtype": "bf16"}),
        (LoRA(2), "reproject", {"static": True}),
        (LoRA(2), "overlap", {"static": True, "reset": "auto"}),
        (RowSparse(0.3), "keep", {"backend": "cpu", "reset": "auto"}),
        (Full(), "none", {"batch": 1}),
    ],
    ids=str,
)
def test_layers_below_what_learns_run_once(adapt, memory, options):
    """The prior takes up where the first layer begins in which something learns, with the bits of a whole forward."""
    options = {"memory": MEMORIES[memory], "backend": "reference", "dtype": "fp32", "segment": T, "streams": 3, **options}
    learning = {"adapt": replace(adapt, layers=range(LOWEST, 4)), "optimizer": SGD(lr=1e4, clip=0)}
    still = {**options, "reset": "never"}
    e, bare = Engine(DEEP[4], guard="exact", **learning, **options), Engine(DEEP[4], **learning, **still)
    whole, upper = (Engine(DEEP[layers], **still) for layers in (4, 2))
    for seed, lengths in enumerate(([T, 3, 0], None, [1, 0, T], None, None)):
        if seed == 3:
            for each in (e, bare, whole, upper):
                each.enter(1)
        tokens = text(seed, 3)
        mixed = e.step(tokens, lengths)
        bare.step(tokens, lengths), upper.step(tokens, lengths)
        assert torch.equal(e.last.nll_static, whole.step(tokens, lengths))
        assert torch.isfinite(mixed).all()
    if options.get("reset") != "auto":
        for phase in ("forward", "recompute"):
            assert e.flops[phase] == bare.flops[phase] + upper.flops[phase]
    e.score(text(9, 5)), e.generate([1, 2], 2)  # passes of other rows hand nothing over


@pytest.mark.parametrize("memory, options", [("none", {}), ("keep", {}), ("reproject", {"static": True}), ("overlap", {})])
def test_where_the_head_alone_learns_all_layers_run_once(memory, options):
    options = {"memory": MEMORIES[memory], "streams": 2, **options}
    e = engine("llama", adapt=LoRA(2, targets=["head"]), **options)
    still = engine("llama", adapt=None, optimizer=None, guard=None, **options)
    for seed, lengths in enumerate((None, [T, 3], [0, 5], None)):
        e.step(text(seed), lengths)
        assert torch.equal(e.last.nll_static, still.step(text(seed), lengths))
    assert not torch.equal(e.last.nll_adapted, e.last.nll_static)


@pytest.mark.parametrize(
    "family, adapt, options",
    [
        ("llama", "lora", {"dtype": "bf16"}),
        ("llama", "rows", {}),
        ("llama", "lora", {"base": "int8"}),
        ("gpt2", "model", {}),
        ("qwen3_5", "lora", {}),
    ],
    ids=str,
)
def test_other_kernels_and_families(family, adapt, options):
    options = {"backend": "cpu", "memory": None if family == "gpt2" else SegmentMemory(6, 2), **options}
    e = engine(family, adapt=ADAPTS[adapt], **options)
    still = engine(family, adapt=None, optimizer=None, guard=None, **options)
    for seed in range(3):
        e.step(text(seed))
        assert torch.equal(e.last.nll_static, still.step(text(seed)))


@pytest.mark.parametrize("optimizer", [Adam(lr=0.02), SGD(lr=3e3, clip=0), SGD(lr=1e30, clip=0)], ids=str)
@pytest.mark.parametrize("kind", ["random", "repeated", "spliced"])
def test_never_worse_than_static(kind, optimizer):
    """Random text, text that learning helps, domains that change, rates that are too high by any factor, scores that are no numbers."""
    e = engine(optimizer=optimizer, memory=SegmentMemory(6, 2))
    one = text(99)
    steps = {
        "random": [text(seed) for seed in range(12)],
        "repeated": [one] * 12,
        "spliced": [text(98, most=4) if seed // 3 % 2 else one for seed in range(12)],
    }[kind]
    mixed, static, adapted = scored(e, steps)
    assert_bound(e, mixed, static, adapted)
    assert torch.isfinite(mixed).all()
    assert e.last.guard_bound == [regret(12 * T, 2, 1e-4)] * 2
    if optimizer.lr == 1e30:
        assert not torch.isfinite(adapted).all(), "the case that this is for"
    if kind == "repeated" and optimizer.lr == 0.02:
        assert (mixed.sum((0, 2)) < static.sum((0, 2)) - 1.0).all(), "what learning gains is kept"


def test_scores_come_before_learning():
    """Tokens after t change no score up to t, in this segment or an earlier one."""
    for t in (0, 3, 6):
        a, b = engine(memory=SegmentMemory(6, 2)), engine(memory=SegmentMemory(6, 2))
        for seed in range(3):
            a.step(text(seed)), b.step(text(seed))
        changed = text(3)
        changed[:, t + 2 :] = text(77)[:, t + 2 :]
        assert torch.equal(a.step(text(3))[:, : t + 1], b.step(changed)[:, : t + 1])


def test_streams_are_alone():
    lengths = [T, 5, 2]
    options = {"memory": SegmentMemory(6, 2), "guard": 2, "backend": "cpu"}
    together, alone = engine(streams=3, **options), [engine(streams=1, **options) for _ in range(3)]
    for seed in range(6):
        if seed == 4:
            together.enter(1), alone[1].enter(0)
        tokens = text(seed, 3)
        mixed = together.step(tokens, lengths)
        for row, one in enumerate(alone):
            assert torch.equal(mixed[row], one.step(tokens[row : row + 1], lengths[row : row + 1])[0])
            assert torch.equal(together.guarding.mixture.log_weights[row], one.guarding.mixture.log_weights[0])


def test_a_document_begins_anew():
    """Weights, the prior's memory and the bound are those of a stream that has seen nothing."""
    e, fresh = engine(memory=SegmentMemory(6, 2), reset="document"), engine(memory=SegmentMemory(6, 2))
    for seed in range(3):
        e.step(text(seed))
    e.enter(0)
    assert e.guarding.mixture.weights(0).tolist() == pytest.approx([0.5, 0.5])
    assert torch.equal(e.step(text(5))[0], fresh.step(text(5))[0])
    assert e.last.guard_bound == [regret(T, 2, 1e-4), regret(4 * T, 2, 1e-4)]


@pytest.mark.parametrize("memory", ["keep", "overlap"])
def test_looks_at_every_nth_segment(memory):
    """Between looks the adapted score stands, the prior costs nothing, and weights rest."""
    e = engine(guard=3, memory=MEMORIES[memory], optimizer=Adam(lr=1e-6))  # neither leads for long: the two agree
    e.guarding.mixture.log_weights.copy_(torch.tensor([0.3, 0.7]).log())
    still = engine(adapt=None, optimizer=None, guard=None, memory=MEMORIES[memory])
    first = engine(guard=None, memory=MEMORIES[memory], optimizer=Adam(lr=1e-6))
    looked = 0
    for seed in range(7):
        before, weights = e.flops["forward"], e.guarding.mixture.log_weights.clone()
        mixed = e.step(text(seed))
        first.step(text(seed))
        cost = still.step(text(seed))
        if seed % 3 == 0:
            looked += T
            assert torch.isfinite(e.last.nll_static).all()
            if memory == "overlap":
                assert torch.equal(e.last.nll_static, cost)
        else:
            assert torch.equal(mixed, e.last.nll_adapted) and e.last.nll_static.isnan().all()
            assert torch.equal(weights, e.guarding.mixture.log_weights)
            assert e.flops["forward"] - before == first.last.flops["forward"]
        assert e.last.guard_bound == [regret(looked, 2, 1e-4)] * 2


def test_a_prior_that_leads_is_looked_at_on_every_segment():
    """The bound holds for what was looked at, and against the adapted one for all; most of the harm is seen."""
    e, leads, kinds = engine(guard=4, adapt=Full("model"), streams=1), [], []
    for seed in range(16):
        leads.append(e.guarding.mixture.weights(0)[0].item() > 0.5)
        kinds.append(scored(e, [text(seed, 1)]))
    mixed, static, adapted = map(torch.cat, zip(*kinds))
    looked, since = [], 0
    for lead in leads:
        looked.append(since == 0 or lead)
        since = (1 if looked[-1] else since + 1) % 4
    assert any(leads) and not all(looked)
    assert looked == [not values.isnan().any() for values in static]
    rest = [not look for look in looked]
    assert torch.equal(mixed[rest], adapted[rest])
    assert_bound(e, mixed[looked], static[looked], adapted[looked])
    assert e.last.guard_bound == [regret(sum(looked) * T, 2, 1e-4)]
    assert mixed.sum() <= adapted.sum() + e.last.guard_bound[0] + 1e-3
    assert adapted[looked].sum() > static[looked].sum() + 20, "a rate that is too high"


@pytest.mark.parametrize(
    "memory, guard, static",
    [("none", "exact", True), ("keep", 3, False), ("keep", "exact", True), ("reproject", "exact", False), ("overlap", 3, False)],
)
def test_saved_and_gone_back_to(tmp_path, memory, guard, static):
    options = {"memory": MEMORIES[memory], "guard": guard, "static": static, "adapt": Full("mlp"), "reset": "auto"}
    e = engine(**options)
    for seed in range(4):
        e.step(text(seed), [T, 3])
    e.save(tmp_path / "state")
    taken = e.snapshot(1)
    first, after = [e.step(text(seed)) for seed in range(4, 8)], state_of(e)
    again = engine(**options)
    again.restore(tmp_path / "state")
    assert all(torch.equal(a, again.step(text(seed))) for a, seed in zip(first, range(4, 8)))
    assert_equal(after, state_of(again), but=["last"])
    e.rollback(1, taken)
    assert all(torch.equal(a[1:], e.step(text(seed)[1:], streams=[1])) for a, seed in zip(first, range(4, 8)))
    for other in (None, Guard(7), Guard(share=0.01)):
        with pytest.raises(ModelError, match="saved with guard="):
            engine(**{**options, "guard": other}).restore(tmp_path / "state")
        with pytest.raises(ValueError, match="guard="):
            engine(**{**options, "guard": other}).rollback(0, taken)
    engine(**{**options, "guard": None}).save(tmp_path / "bare")
    with pytest.raises(ModelError, match="saved with guard=None"):
        again.restore(tmp_path / "bare")


@pytest.mark.parametrize(
    "options", [{"shared": True}, {"every": 2}, {"every": 2, "accumulate": True}, {"reset": 3 * T}, {"batch": 1}], ids=str
)
def test_beside_other_settings(options):
    e, bare = engine(**options), engine(guard=None, **options)
    mixed, static, adapted = scored(e, [text(seed) for seed in range(6)])
    assert torch.equal(adapted, torch.stack([bare.step(text(seed)) for seed in range(6)]).double())
    assert_bound(e, mixed, static, adapted)


@pytest.mark.parametrize("memory, static", [("none", False), ("keep", True), ("reproject", False), ("overlap", True)])
def test_a_stream_that_is_worse_than_the_prior_goes_back_to_it(memory, static):
    """reset="auto": behind the segment that shows it; a stream that diverged, whose memory is spoilt too, is whole again."""
    options = {"memory": MEMORIES[memory], "static": static, "optimizer": SGD(lr=1e30, clip=0), "reset": "auto"}
    e, still = engine(**options), engine(**{**options, "optimizer": None, "adapt": None, "guard": None, "reset": "never"})
    fresh = engine(**{**options, "streams": 1, "reset": "never"})
    for seed in range(4):
        mixed, prior = e.step(text(seed)), still.step(text(seed))
        assert torch.isfinite(mixed).all()
        assert e.last.was_reset == [seed % 2 == 1] * 2, "a first segment is the prior's own, its update ruins the second"
        if seed % 2 == 0:
            torch.testing.assert_close(e.last.nll_adapted, prior)
    assert e.updates == 2 * 2 and torch.equal(e.learners[0].state.master[1], fresh.learners[0].state.master[0])


def test_no_false_alarms():
    """The prior is no reason to go back while it is worse, nor is what is not looked at."""
    e, one = engine(reset="auto", guard=2, optimizer=Adam(lr=0.02), memory=SegmentMemory(6, 2)), text(99)
    for _ in range(12):
        e.step(one)
        assert not any(e.last.was_reset)
    assert e.guarding.alarms.table.max() < 10.0
    e.guarding.alarms.table.fill_(9.0)
    e.enter(0), e.reset(1)
    assert not e.guarding.alarms.table.any()


def overflowing(**options):
    """Whose weights are no numbers any more behind one step."""
    return engine(optimizer=AdamW(lr=1e38, weight_decay=1e3), backend="cpu", streams=1, **options)


def test_what_diverged_is_saved_and_gone_on_with(tmp_path):
    e, other = overflowing(), overflowing()
    for seed in range(3):
        e.step(text(seed, 1))
    assert not torch.isfinite(e.learners[0].state.master).all()
    e.save(tmp_path)
    other.restore(tmp_path)
    for seed in range(2):
        scores = e.step(text(seed, 1))
        assert torch.equal(scores, other.step(text(seed, 1))) and torch.isfinite(scores).all()


def test_an_a_that_diverged_is_not_kept():
    e = overflowing(adapt=LoRA(2, keep_a=True))
    for seed in range(3):
        e.step(text(seed, 1))
    assert not torch.isfinite(e.learners[0].state.master).all()
    e.reset(0)
    still = engine(adapt=None, optimizer=None, guard=None, backend="cpu", streams=1)
    assert torch.equal(e.score(text(7, 1)), still.score(text(7, 1)))


def test_steps_in_two_and_no_more_learning():
    """``forward_backward`` is guarded as ``step`` is, and so is what only scores."""
    e, twin = engine(), engine()
    for seed in range(3):
        expected = twin.step(text(seed))
        assert torch.equal(e.forward_backward(text(seed)), expected)
        e.optim_step()
        torch.testing.assert_close(e.learners[0].state.master, twin.learners[0].state.master)
    e.learn_no_more(), twin.learn_no_more()
    assert torch.equal(e.step(text(3)), twin.step(text(3))) and e.last.nll_static is not None


def test_what_it_says_and_refuses():
    e = engine(guard=4, memory=SegmentMemory(6, 2), adapt=Full())
    assert "guard:  the model as it was is scored on every 4th segment, and on all while it leads" in e.explain()
    assert "the guard's prior" in e.explain()
    assert "scored on every segment" in engine().explain()
    assert e.guard == Guard(4) and e.settings.describe()["guard"] == {"every": 4, "share": 1e-4}
    assert "guard" not in engine(guard=None).settings.describe()
    with pytest.raises(ValueError, match="guard=.* with adapt=None: what is scored is the prior"):
        engine(adapt=None, optimizer=None)
    with pytest.raises(ValueError, match="guard='always': expected \"exact\""):
        engine(guard="always")
    with pytest.raises(AttributeError, match="make a new Engine"):
        e.guard = None
    assert engine(guard=None).last is None
    bare = engine(guard=None)
    bare.step(text())
    assert bare.last.nll_static is None is bare.last.guard_bound
