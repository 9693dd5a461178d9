"""Which tokens are learned from, by their scores: the rules written out by hand, what a segment that is left out costs, and going on bit for bit."""

import numpy as np
import pytest
import torch
from engine_states import assert_equal, state_of
from helpers import descended, descent_error, linear_weights

from dynadapt import SGD, Adam, Alarm, Engine, Full, LoRA, Overlap, RateMixture, RowSparse, SegmentMemory, Selection, Slow
from dynadapt.adapt.selection import WARMUP, WINDOW, as_selection, bounds, remembered
from dynadapt.distributed.learn import connect
from dynadapt.engine.settings import EngineSettings
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.ops import cross_entropy
from dynadapt.ops import update as update_op

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T = 8
BOTH = Selection(below=0.4, above=1.2)
ALL = Selection(below=0.4, above=1.2, tokens=(0.2, 0.8))
TOKENS = Selection(tokens=(0.2, 0.8))
RULES = {"below": Selection(below=0.4), "above": Selection(above=0.7), "tokens": TOKENS, "all": ALL}
MEMORIES = {"none": None, "keep": SegmentMemory(6, 2), "overlap": Overlap(5)}


def engine(learn_from=None, streams=1, **options):
    given = {"adapt": LoRA(2), "optimizer": Adam(lr=0.02), "segment": T, "backend": "reference", "dtype": "fp64"}
    return Engine(MODEL, streams=streams, learn_from=learn_from, **{**given, **options})


def segments(count=30, rows=1, seed=0):
    """Segments of which some are easier than others: of few different tokens."""
    g = torch.Generator().manual_seed(seed)
    most = [3, 100, 20, 100, 3, 100, 100, 8]
    return [torch.randint(most[(i + i // 8) % 8], (rows, T + 1), generator=g) for i in range(count)]


def masters(e):
    return torch.cat([learner.state.master.flatten() for learner in e.learners]).clone()


def mask_by_hand(rule, recent, nll):
    """Which of the tokens [T] of a segment count, from numpy's own quantiles."""
    mean, none = nll.mean(), np.zeros(len(nll), bool)
    if len(recent) >= 8:
        if rule.below is not None and mean < np.quantile(recent, rule.below):
            return none
        if rule.above is not None and mean > np.mean(recent) + rule.above * np.std(recent, ddof=1):
            return none
    if rule.tokens is None:
        return ~none
    low, high = (np.quantile(nll, q, method=m) for q, m in zip(rule.tokens, ("lower", "higher")))
    return (nll >= low) & (nll <= high)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("memory", MEMORIES)
def test_what_is_learned_is_the_rule_written_out(rule, memory):
    """Beside an engine that is given each token's weight, of the scores that it gives itself."""
    e, plain, recent, left = engine(RULES[rule], memory=MEMORIES[memory]), engine(memory=MEMORIES[memory]), [], []
    for tokens in segments():
        at, own = plain.snapshot(0), e.step(tokens)
        nll = plain.step(tokens)
        torch.testing.assert_close(own, nll, rtol=0, atol=1e-10)  # a score knows nothing of what is learned from it
        mask = mask_by_hand(RULES[rule], recent, nll[0].numpy())
        plain.rollback(0, at)
        plain.step(tokens, weights=torch.from_numpy(mask)[None])
        recent = (recent + [float(nll.mean())])[-64:]
        left.append(not mask.any())
        assert e.last.learned_tokens == [mask.sum()] and e.last.updated == plain.last.updated == [bool(mask.any())]
        torch.testing.assert_close(masters(e), masters(plain), rtol=0, atol=1e-9)
    assert not any(left[:8]) and (any(left) == (rule != "tokens")) and left.count(False) >= 12
    assert e.updates == left.count(False)


def test_the_window_is_the_last_64_segments():
    e = engine(BOTH, adapt=LoRA(2, targets=("q",)), optimizer=SGD(lr=0.0))
    means = [float(e.step(tokens).mean()) for tokens in segments(70)]
    np.testing.assert_allclose(e.state[0].recent, means[-64:], rtol=1e-12)
    assert WINDOW == 64 and WARMUP == 8
    e.enter(0)
    assert e.state[0].recent == []


def test_the_mean_is_over_the_tokens_that_count():
    """Against autograd of the whole model in float64."""
    e, tokens = engine(TOKENS, adapt=Full(), optimizer=SGD(lr=0.5, clip=0)), segments()[1]
    nll = e.step(tokens)[0]
    mask = torch.from_numpy(mask_by_hand(TOKENS, [], nll.numpy()))
    assert 0 < mask.sum() < T
    loss = lambda logits: torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")[mask].mean()  # noqa: E731
    expected = descended(MODEL, tokens, loss)
    for name, weight in linear_weights(e.learners[0], MODEL.config).items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=descent_error(MODEL.config)), name


@pytest.mark.parametrize("adapt", [LoRA(2), LoRA(2, targets=("q", "head")), RowSparse(0.3, "fixed"), Full(), Full("model")], ids=repr)
@pytest.mark.parametrize("backend,dtype,tolerance", [("cpu", "fp32", 1e-4), ("cpu", "bf16", 1e-2)])
def test_kernels_learn_what_the_reference_learns(adapt, backend, dtype, tolerance):
    same = {"adapt": adapt, "optimizer": SGD(lr=0.05, clip=0), "streams": 2}
    truth, native = engine(TOKENS, **same), engine(TOKENS, backend=backend, dtype=dtype, **same)
    before, tokens = masters(truth), segments(4, 2)[3]
    for e in (truth, native):
        e.step(tokens, lengths=[T, 5])
    moved, ours = masters(truth) - before, masters(native).double() - before
    assert truth.last.learned_tokens == native.last.learned_tokens
    assert moved.abs().max() > 1e-3 and (moved - ours).abs().max() <= tolerance * max(1, moved.abs().max())


@pytest.mark.parametrize("learns", ["lora", "rows", "full"])
def test_a_segment_that_is_left_out_has_no_backward(learns):
    e = engine(BOTH, adapt=learns, backend="cpu", dtype="fp32")
    c = MODEL.config
    head = cross_entropy.flops(T, c.hidden_size, c.vocab_size, False)
    seen = set()
    for tokens in segments():
        before = masters(e)
        e.step(tokens)
        learned = e.last.learned_tokens[0] > 0
        seen.add(learned)
        assert (e.last.flops["update"] > 0) == learned == (not torch.equal(before, masters(e)))
        assert e.last.flops["backward"] > 2 * head if learned else e.last.flops["backward"] == head
        assert learned or e.last.flops["recompute"] == 0
    assert seen == {True, False}


def alone(e, streams, steps):
    """Masters of each stream, learned in an engine of its own."""
    found = []
    for s in range(streams):
        one = e()
        for tokens in steps:
            one.step(tokens[s : s + 1])
        found.append(masters(one))
    return torch.stack(found)


@pytest.mark.parametrize("batch", [None, 2])
def test_other_streams_of_a_pass_still_learn(batch):
    steps = [torch.cat([a, b, c]) for a, b, c in zip(segments(), segments(seed=7)[3:] + segments(3, seed=8), segments(seed=9))]
    e, some = engine(ALL, 3, batch=batch), 0
    once = update_op.flops(e.learned_parameters, e.optimizer.rule())
    for tokens in steps:
        e.step(tokens)
        assert e.last.flops["update"] == once * sum(n > 0 for n in e.last.learned_tokens) == once * sum(e.last.updated)
        some += 0 < sum(n > 0 for n in e.last.learned_tokens) < 3
    assert some > 5
    torch.testing.assert_close(masters(e).view(3, -1), alone(lambda: engine(ALL), 3, steps), rtol=0, atol=1e-11)


def test_rows_that_share_weights_learn_the_mean_of_what_is_left():
    e, plain, recents, parts = engine(ALL, 3, shared=True), engine(streams=3, shared=True), [[], [], []], set()
    for tokens in segments(rows=3):
        at, nll = plain.snapshot(0), plain.step(tokens)
        masks = np.stack([mask_by_hand(ALL, recent, row.numpy()) for recent, row in zip(recents, nll)])
        plain.rollback(0, at)
        plain.step(tokens, weights=torch.from_numpy(masks))
        e.step(tokens)
        recents = [recent + [float(row.mean())] for recent, row in zip(recents, nll)]
        assert e.last.learned_tokens == masks.sum(1).tolist()
        parts.add(int(masks.any(1).sum()))
        torch.testing.assert_close(masters(e), masters(plain), rtol=0, atol=1e-12)
    assert len(parts) > 1


def test_given_weights_and_the_rule_multiply():
    g = torch.Generator().manual_seed(3)
    weights = (torch.rand(1, T, generator=g) + 0.5) * (torch.rand(1, T, generator=g) < 0.6)
    e, plain, tokens = engine(TOKENS), engine(), segments()[3]
    mask = torch.from_numpy(mask_by_hand(TOKENS, [], e.step(tokens, weights=weights)[0].numpy()))
    plain.step(tokens, weights=weights * mask)
    assert 0 < e.last.learned_tokens[0] == int((weights * mask).count_nonzero()) < int((weights != 0).sum())
    torch.testing.assert_close(masters(e), masters(plain), rtol=0, atol=1e-12)


def test_only_due_segments_choose_and_all_are_watched():
    e = engine(BOTH, every=2)
    chose = []
    for tokens in segments():
        e.step(tokens)
        chose.append(e.last.learned_tokens[0])
    assert chose[::2] == [None] * 15 and {0, T} == set(chose[1::2]) and len(e.state[0].recent) == 30


CONFIGURATIONS = {
    "plain": {},
    "memory": {"memory": SegmentMemory(6, 2, "reproject"), "every": 2},
    "overlap": {"memory": Overlap(5), "reset": 40},
    "guard": {"guard": "exact", "reset": Alarm(0.5, ring=2, every=2), "memory": SegmentMemory(6, 2), "optimizer": Adam(lr=0.1)},
    "auto": {"reset": "auto"},
    "rows": {"adapt": RowSparse(0.3, every=3)},
    "full": {"adapt": Full(), "optimizer": SGD(lr=0.05)},
    "head": {"adapt": LoRA(2, targets=("q", "head"))},
    "each": {"adapt": (LoRA(2), LoRA(3))},
    "slow": {"slow": Slow(every=40, window=8)},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_it_goes_on_bit_for_bit(name, backend, tmp_path):
    options, steps = {**CONFIGURATIONS[name], "backend": backend, "dtype": "fp32"}, segments(24, 2)
    e, other = engine(ALL, 2, **options), engine(ALL, 2, **options)
    left = 0
    for i, tokens in enumerate(steps):
        if i == 15:
            e.save(tmp_path)
            other.restore(tmp_path)
            snapshot = None if name == "slow" else e.snapshot(1)
        nll = e.step(tokens)
        left += i >= 15 and e.last.learned_tokens.count(0)
        if i >= 15:
            assert torch.equal(nll, other.step(tokens)) and e.last.learned_tokens == other.last.learned_tokens
    assert left > 0
    assert_equal(state_of(e), state_of(other), but=("last",))
    if snapshot is None:
        return
    learned = [masters(e), list(e.state[1].recent)]
    e.rollback(1, snapshot)
    for tokens in steps[15:]:
        e.step(tokens[1:], streams=[1])
    torch.testing.assert_close(masters(e), learned[0], rtol=0, atol=1e-5)  # in other company
    np.testing.assert_allclose(e.state[1].recent, learned[1], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"guard": "exact"}], ids=["alone", "guarded"])
def test_later_tokens_change_no_score(options):
    steps = segments(24)
    changed = [*steps[:20], (steps[20] + torch.tensor([0] * 5 + [1] * 4)) % 100, *steps[21:]]
    found = []
    for text in (steps, changed):
        e = engine(ALL, **options)
        found.append(torch.cat([e.step(tokens)[0] for tokens in text]))
    at = 20 * T + 4
    assert torch.equal(found[0][:at], found[1][:at]) and not torch.equal(found[0][at:], found[1][at:])


def test_rates_side_by_side_choose_each_by_its_own_scores():
    mixture = RateMixture(
        MODEL, [1e-3, 0.05], adapt=LoRA(2), segment=T, backend="reference", dtype="fp64", learn_from="below=0.4,above=1.2"
    )
    steps, one = segments(), engine(BOTH, optimizer=Adam(lr=0.05))
    for tokens in steps:
        mixture.step(tokens)
        one.step(tokens)
        assert mixture.last.learned_tokens[1:] == one.last.learned_tokens
    torch.testing.assert_close(masters(mixture.engine).view(2, -1)[1], masters(one), rtol=0, atol=1e-11)


def test_states_of_another_rule_are_refused(tmp_path):
    e = engine(BOTH)
    e.step(segments()[0])
    e.save(tmp_path / "a")
    with pytest.raises(ModelError, match="saved with learn_from=.*this engine has None"):
        engine().restore(tmp_path / "a")
    plain = engine()
    plain.save(tmp_path / "b")
    with pytest.raises(ModelError, match="learn_from"):
        e.restore(tmp_path / "b")
    with pytest.raises(ValueError, match="learn_from"):
        engine(TOKENS).rollback(0, e.snapshot(0))
    engine().restore(tmp_path / "b")


def test_a_score_that_is_no_number_is_remembered_by_nothing():
    assert remembered([1.0], float("nan")) == remembered([1.0], float("inf")) == [1.0]
    rule = Selection(below=0.5, above=1.0)
    assert rule.takes([1.0] * 8, float("inf")) and rule.takes([1.0] * 7, 9.0) and not rule.takes([1.0] * 8, 9.0)


def test_every_segment_has_a_token_that_counts():
    for count in range(1, 40):
        for low, high in ((0.0, 0.01), (0.2, 0.95), (0.499, 0.501), (0.99, 1.0), (0.0, 1.0)):
            first, last = bounds((low, high), count)
            assert 0 <= first <= last < count


def test_words():
    assert as_selection("below=0.3,above=4,tokens=0.2:0.95") == Selection(0.3, 4.0, (0.2, 0.95))
    for rule in (*RULES.values(), Selection(below=0.25)):
        assert as_selection(rule.word) == rule and as_selection(rule) is rule
    assert as_selection(None) is None and engine("above=4").learn_from == Selection(above=4)


@pytest.mark.parametrize(
    "given,said",
    [
        ({"below": 1}, "below=1: expected a quantile"),
        ({"below": "a"}, "below='a'"),
        ({"above": 0}, "above=0: expected a number of standard deviations"),
        ({"tokens": (0.5, 0.5)}, r"tokens=\(0.5, 0.5\): expected two quantiles"),
        ({"tokens": (0.5, 1.5)}, "expected two quantiles"),
        ({"tokens": 0.5}, "tokens=0.5: expected two quantiles"),
        ({}, r"Selection\(\) has no rule"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Selection(**given)


@pytest.mark.parametrize("words", ["", "below", "below=x", "below=0.3,below=0.2", "tokens=0.2", "tokens=0.9:0.1", "over=4", "below=2"])
def test_words_that_say_no_rule_are_refused(words):
    with pytest.raises(ValueError, match="learn_from="):
        as_selection(words)


@pytest.mark.parametrize(
    "options,said",
    [
        ({"adapt": None, "optimizer": None}, "learn_from=.* with adapt=None"),
        ({"accumulate": True, "every": 2}, "learn_from=.* with accumulate=True"),
        ({"static": True}, "learn_from=.* with static=True"),
        ({"learn_from": 0.3}, r"learn_from=0.3: expected Selection\(below, above, tokens\)"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        engine(**{"learn_from": BOTH, **options})


def test_a_split_step_is_refused():
    with pytest.raises(ValueError, match="forward_backward with learn_from="):
        engine(BOTH).forward_backward(segments()[0])


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match="learn_from=.*only an engine with learn_from=None can be connected"):
        connect(engine(BOTH, shared=True), None)


def test_it_is_said():
    e = engine(ALL)
    assert "from:   Selection(below=0.4, above=1.2, tokens=(0.2, 0.8))" in e.explain()
    assert e.describe()["learn_from"] == {"below": 0.4, "above": 1.2, "tokens": (0.2, 0.8)}
    assert "learn_from" not in engine().describe() and isinstance(e.settings, EngineSettings)
