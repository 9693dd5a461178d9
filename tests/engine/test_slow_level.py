"""The slow level is the update written out by hand, comes behind the score, is never reset, and goes on bit for bit."""

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import RMS, SGD, Adam, Engine, Full, LoRA, Overlap, RateMixture, RowSparse, SegmentMemory, Slow
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.base import from_state
from dynadapt.model.layout import group_parts, linear_shapes, tensor_shapes

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T = 8
SLOW = {
    "lora": Slow(LoRA(4), SGD(lr=2.0, momentum=0.9, clip=0), every=20, window=11),
    "full": Slow(Full(), SGD(lr=0.5, momentum=0.9, clip=0), every=20, window=11),
    "adam": Slow(LoRA(4, targets=("q", "down")), Adam(lr=0.05), every=20, window=11),
}
PLACES = {"reference": {"backend": "reference", "dtype": "fp64"}, "cpu": {"backend": "cpu", "dtype": "fp32"}}


def engine(slow="lora", place="reference", **options):
    given = {"adapt": LoRA(2), "optimizer": SGD(lr=1.0, clip=0), "segment": T, "streams": 2, "memory": SegmentMemory(6, 2)}
    return Engine(MODEL, **{**given, **PLACES[place], **options, "slow": SLOW.get(slow, slow)})


def text(seed, rows=2, length=T):
    return torch.randint(100, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def stream_text(n, seed=0, rows=2):
    """Segments that go on with the token that the last ended with."""
    whole = text(seed, rows, n * T)
    return [whole[:, i * T : (i + 1) * T + 1] for i in range(n)]


def changed(weights):
    """The model with other linear weights."""
    state = {name: weights.get(name, MODEL.tensor(name)) for name in tensor_shapes(MODEL.config)}
    return from_state(MODEL.config, state, None, name="changed")


def by_hand(windows, rate, momentum, updates):
    """Linear weights after SGD on whole weights, each update by the gradient of the mean over all its windows' tokens, in float64."""
    names = [f"layers.{i}.{part}.weight" for i in range(MODEL.config.layers) for part in linear_shapes(MODEL.config, i)]
    weights = {name: MODEL.tensor(name).double() for name in names}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for kept in windows[:updates]:
        total, sums = sum(len(w) - 1 for w in kept), dict.fromkeys(names, 0.0)
        for window in kept:
            e = Engine(changed(weights), Full(), optimizer=SGD(lr=1.0, clip=0), segment=len(window) - 1, backend="reference", dtype="fp64")
            e.step(torch.tensor([window]))  # moves by minus the gradient of the window's mean
            for key in e.learners[0].sizes:
                for p, part in enumerate(group_parts(MODEL.config, *key)):
                    name = f"layers.{key[0]}.{part}.weight"
                    moved = weights[name] - e.learners[0].parts(*key)[p].weight
                    sums[name] = sums[name] + moved * (len(window) - 1) / total
        for name in names:
            velocity[name] = momentum * velocity[name] + sums[name]
            weights[name] = weights[name] - rate * velocity[name]
    return weights


def test_whole_weights_by_hand():
    e = engine("full", adapt=None, optimizer=None, memory=None)
    segments = stream_text(4)
    for tokens in segments:
        e.step(tokens)
    row = lambda s, a, b: torch.cat([segments[a][s], *(t[s, 1:] for t in segments[a + 1 : b])]).tolist()  # noqa: E731
    runs = [[row(s, a, a + 2) for s in (0, 1)] for a in (0, 2)]
    windows = [[run[i : i + 12] for run in both for i in (0, 11)] for both in runs]
    assert [[len(w) - 1 for w in each] for each in windows] == [[11, 5, 11, 5]] * 2
    assert e.slow_level.learner.updates == 2 and e.slow_level.kept == 0
    still = Engine(changed(by_hand(windows, 0.5, 0.9, 2)), segment=T, backend="reference", dtype="fp64")
    torch.testing.assert_close(e.score(text(9)), still.score(text(9)), rtol=1e-9, atol=1e-9)
    assert (e.score(text(9)) - Engine(MODEL, segment=T, backend="reference", dtype="fp64").score(text(9))).abs().max() > 1e-3


@pytest.mark.parametrize("slow", ["lora", "adam", "full"])
@pytest.mark.parametrize("place", list(PLACES))
def test_streams_read_what_the_learner_has(slow, place):
    e = engine(slow, place, adapt=None, optimizer=None, memory=None)
    for tokens in stream_text(5):
        e.step(tokens)
    assert e.slow_level.learner.updates == 2
    learner = e.slow_level.learner
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if place == "reference" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(e.score(text(9)), learner.score(text(9)), **tolerance)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("slow", list(SLOW))
def test_score_first(slow, place):
    """No score moves by a bit when its own or later tokens do; later ones do when what the slow level has learned from does."""
    segments = stream_text(6)

    def scores(changed=None):
        e = engine(slow, place)
        made = []
        for i, tokens in enumerate(segments):
            tokens = tokens.clone()
            if i == changed:
                tokens[0, 1:] = text(5, 1)[0, 1:]
            made.append(e.step(tokens))
        return made

    plain, other = scores(), scores(changed=1)
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[1][1], other[1][1]), "its neighbour's score of the same step"
    assert not torch.equal(plain[2][1], other[2][1]), "after the update at the end of step 1, its neighbour's too"


def test_not_reset_by_documents_and_free_between_updates():
    e, without = engine("lora", reset="document"), engine(None, reset="document")
    segments = stream_text(2)
    e.step(segments[0]), without.step(segments[0])
    assert e.last.flops == without.last.flops
    e.step(segments[1]), without.step(segments[1])
    assert e.last.flops["forward"] == without.last.flops["forward"]
    assert e.last.flops["backward"] > without.last.flops["backward"] and e.last.flops["recompute"] > without.last.flops["recompute"]
    assert e.flops == {p: a + b for (p, a), b in zip(e.last.flops.items(), (e.flops[p] - e.last.flops[p] for p in e.flops))}
    for s in (0, 1):
        e.enter(s), without.enter(s)
    torch.testing.assert_close(e.score(text(9)), e.slow_level.learner.score(text(9)), rtol=1e-9, atol=1e-9)
    assert not torch.equal(e.score(text(9)), without.score(text(9)))


def test_runs_end_with_documents():
    e = engine(Slow(every=10**6, window=64))
    segments = stream_text(3)
    e.step(segments[0]), e.step(segments[1], lengths=[T, 3])
    e.enter(0)
    e.step(segments[2][:1], streams=[0])
    assert [len(run) - 1 for run in e.slow_level.runs] == [2 * T, T + 3, T]
    e.learn_no_more()
    e.step(segments[2])
    assert e.slow_level.kept == 4 * T + 3


@pytest.mark.parametrize("memory", [None, SegmentMemory(6, 2), SegmentMemory(6, 2, refresh="reproject"), Overlap(4)])
@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("slow", list(SLOW))
def test_goes_on_bit_for_bit(slow, place, memory, tmp_path):
    segments, options = stream_text(7), {"memory": memory, "place": place}
    whole, first = engine(slow, **options), engine(slow, **options)
    for tokens in segments[:3]:
        whole.step(tokens), first.step(tokens)
    first.save(tmp_path)
    second = engine(slow, **options)
    second.restore(tmp_path)
    for tokens in segments[3:]:
        assert torch.equal(whole.step(tokens), second.step(tokens))
    assert whole.slow_level.learner.updates == second.slow_level.learner.updates == 3
    assert_equal(state_of(whole), state_of(second), but=("last",))
    assert whole.slow_level.runs == second.slow_level.runs and whole.slow_level.open == second.slow_level.open


def test_states_with_and_without_are_told_apart(tmp_path):
    engine("lora").save(tmp_path)
    for other in (None, "full", Slow(LoRA(4), SLOW["lora"].optimizer, every=21, window=11)):
        with pytest.raises(ModelError, match="saved with slow="):
            engine(other).restore(tmp_path)


@pytest.mark.parametrize(
    "name, options",
    [
        ("guard=", {"guard": "exact"}),
        ("shared=True", {"shared": True}),
        ("static=True", {"static": True}),
        ("adapt=Full", {"adapt": Full()}),
        ("adapt=RowSparse", {"adapt": RowSparse()}),
        ("base='int8'", {"base": "int8", "place": "cpu"}),
    ],
)
def test_refused_beside_it(name, options):
    with pytest.raises(ValueError, match=f"{name}.*with slow="):
        engine("lora", **options)


def test_refused():
    for bad in ({"adapt": RowSparse()}, {"adapt": Full(targets="model")}, {"adapt": LoRA(targets=("q", "head"))}, {"optimizer": RMS()}):
        with pytest.raises(ValueError, match=f"slow.{next(iter(bad))}="):
            Slow(**bad)
    for bad in ({"every": 0}, {"window": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Slow(**bad)
    with pytest.raises(ValueError, match="slow.window=513: the model has 512 positions"):
        engine(Slow(window=513))
    with pytest.raises(ValueError, match="slow='yes'"):
        engine("yes")
    e = engine("lora")
    for call in (lambda: e.snapshot(0), lambda: e.forward_backward(text(0)), lambda: e.step(text(0), weights=[1, 1])):
        with pytest.raises(ValueError, match="with slow="):
            call()
    with pytest.raises(ValueError, match="slow=.*rates"):
        RateMixture(MODEL, [0.1, 0.2], adapt=LoRA(2), slow=Slow())
