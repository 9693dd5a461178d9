"""What an alarm of a guarded stream leads to: part of the way, the best copy of a ring, a lower rate; and that no score moves for it."""

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import SGD, Adam, Alarm, Engine, Full, LoRA, Overlap, RateMixture, SegmentMemory
from dynadapt.model import random_model, tiny_config

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T = 8
MEMORIES = {"none": None, "keep": SegmentMemory(6, 2), "reproject": SegmentMemory(6, 2, "reproject"), "overlap": Overlap(5)}
HALF = Alarm(0.5, back=0.5, recover=3)
RING = Alarm(0.5, ring=2, every=2)
SLOWER = Alarm(0.5, slower=0.25, recover=2)


def engine(reset, **options):
    given = {"adapt": LoRA(2), "optimizer": Adam(lr=0.05), "guard": "exact", "backend": "reference", "dtype": "fp32", "segment": T}
    return Engine(MODEL, reset=reset, **{**given, "streams": 2, **options})


def text(seed=0, rows=2, most=100):
    return torch.randint(most, (rows, T + 1), generator=torch.Generator().manual_seed(seed))


SAME, OTHER = text(50), text(51)
RUIN = 5  # the step whose update ruins the weights: the next raises an alarm


def spliced(steps=12):
    """One text again and again, then others."""
    return [SAME if i < RUIN else text(60 + i) for i in range(steps)]


def take(e, i, tokens):
    """Step ``i`` of a text, at a rate that ruins in one of them."""
    for stream in range(e.streams):
        e.set_lr(stream, 50.0 if i == RUIN else 0.05)
    return e.step(tokens[: e.streams])


def master(e, stream=0):
    return e.learners[0].state.master[stream].clone()


def until_alarm(e, *others):
    """Steps up to the first alarm of stream 0, by all alike; the number of the next."""
    for i, tokens in enumerate(spliced()):
        for each in (e, *others):
            take(each, i, tokens)
        if 0 in e.last.went_back:
            return i + 1
    raise AssertionError("no alarm")


def test_part_of_the_way():
    """The mean of the prior's weights and those that the segment's own update has made; moments begin anew."""
    e, never, fresh = engine(HALF), engine("never"), master(engine(HALF))
    until_alarm(e, never)
    assert e.last.went_back[0] == "part of the way" and e.last.was_reset[0]
    torch.testing.assert_close(master(e), (master(never) + fresh) / 2)
    state = e.learners[0].state
    assert not state.first[0].any() and not state.second[0].any() and state.step[0] == 0


def test_a_second_alarm_soon_after_leads_all_the_way():
    e, fresh = engine(Alarm(1e-6, back=0.5, recover=50)), master(engine(HALF))
    went = []
    for seed in range(12):
        e.step(text(seed))
        went += [e.last.went_back[0]] if 0 in e.last.went_back else []
        if len(went) == 2:
            break
    assert went == ["part of the way", "prior"] and torch.equal(master(e), fresh)


@pytest.mark.parametrize("apart,way", [(3, "prior"), (4, "part of the way")])
def test_soon_is_recover_segments_at_most(apart, way, monkeypatch):
    e, step = engine(HALF, streams=1), 0
    monkeypatch.setattr(e.guarding.alarms.alarms, "observe", lambda streams, *scores: streams if step in (1, 1 + apart) else [])
    for step in range(2 + apart):
        e.step(text(step, rows=1))
    assert HALF.recover == 3 and e.last.went_back == {0: way}


def test_what_diverged_goes_all_the_way():
    e = engine(Alarm(back=0.5), optimizer=SGD(lr=1e30, clip=0))
    e.step(text(0)), e.step(text(1))
    assert e.last.went_back == {0: "prior", 1: "prior"} and torch.equal(master(e), master(engine(HALF)))


def alarming(reset, memory, **options):
    """Has learned one text, of which RING has two copies, and then a bit of another."""
    e = engine(reset, streams=1, memory=MEMORIES[memory], **options)
    for tokens in [SAME[:1]] * 4:
        e.step(tokens)
    alarms = e.guarding and e.guarding.alarms
    if alarms:
        alarms.table.fill_(-1e3)
    e.step(OTHER[:1])
    if alarms:
        alarms.table.fill_(1e3)  # whatever comes raises an alarm
    return e


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_best_copy_of_the_ring(memory):
    """Every candidate is scored by an engine that is put by hand where the copy was taken: weights, memory and FLOPs are those of the best."""
    e, bare = alarming(RING, memory), alarming("never", memory, guard=None)
    copies = [{n: t[place].clone() for n, t in e.guarding.alarms.ring[0].items()} for place in range(2)]
    by_hand, scores = [], []
    for copy in copies:
        by_hand.append(alarming("never", memory, guard=None))
        by_hand[-1].driver.step.return_to(0, copy)
        scores.append(by_hand[-1].step(SAME[:1]).double().sum().item())
    bare.step(SAME[:1])
    never = alarming("never", memory)
    assert torch.equal(e.step(SAME[:1]), never.step(SAME[:1])), "the published score stays"
    assert e.last.went_back == {0: "copy"} and e.last.was_reset == [True] and scores[0] != scores[1]
    assert min(scores) < e.last.nll_static.double().sum().item()
    best = scores.index(min(scores))
    for name, t in e.learners[0].state.slot(0).items():
        if name != "grad":
            assert torch.equal(t, copies[best][name]), name
    for phase in ("forward", "recompute"):
        assert e.last.flops[phase] == never.last.flops[phase] + 2 * bare.last.flops[phase] - (phase == "recompute") * 2 * backward_again(
            memory
        )
    assert e.updates == never.updates and e.state[0].segments == 6 and not e.state[0].waiting
    if e.decoder.memory is not None:
        mine, expected = (each.decoder.memory.slot_copy(0) for each in (e, by_hand[best]))
        assert all(torch.equal(mine[kind], expected[kind]) for kind in mine)
    assert torch.isfinite(e.step(OTHER[:1])).all()


def backward_again(memory):
    """FLOPs of recompute that a backward has, of the sixth segment."""
    with_backward, without = alarming("never", memory, guard=None), alarming("never", memory, guard=None)
    without.learn_no_more()
    with_backward.step(SAME[:1]), without.step(SAME[:1])
    return with_backward.last.flops["recompute"] - without.last.flops["recompute"]


def test_the_prior_is_gone_back_to_where_no_copy_is_better():
    e = alarming(RING, "keep")
    for copies in e.guarding.alarms.ring[0].values():
        copies.fill_(float("nan")) if copies.is_floating_point() else None
    e.step(SAME[:1])
    assert e.last.went_back == {0: "prior"} and torch.equal(master(e), master(engine(RING)))
    mine, prior = e.decoder.memory.slot_copy(0), e.guarding.prior.memory.slot_copy(0)
    assert all(torch.equal(mine[kind], prior[kind]) for kind in mine)


def test_a_lower_rate_for_a_while():
    """The update behind an alarm is at the factor's rate, until ``recover`` segments without one; engine.lr says the whole rate."""
    e = engine(SLOWER, streams=1)
    until_alarm(e)
    assert float(e.lr[0]) == pytest.approx(0.05)
    for factor in (0.25, 0.25, 1.0):
        e.guarding.alarms.table.zero_()
        plain = engine("never", streams=1, optimizer=Adam(lr=0.05 * factor))
        plain.learners[0].slot_load(0, e.learners[0].slot_copy(0))
        e.step(OTHER[:1]), plain.step(OTHER[:1])
        assert not e.last.went_back
        assert torch.equal(master(e), master(plain))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("reset", [HALF, SLOWER, RING], ids=["half", "slower", "ring"])
def test_the_first_alarm_moves_no_score_before_it_and_its_own_stays(reset, static):
    """Up to the first alarm, its segment included, all is what it is without; the adapted score of the next is not."""
    if static and reset.ring:
        with pytest.raises(ValueError, match="ring=2.*with static=True"):
            engine(reset, static=True)
        return
    options = {"static": static, "memory": MEMORIES["keep"]}
    e, never = engine(reset, **options), engine("never", **options)
    for i, tokens in enumerate(spliced()):
        went = bool(e.last and e.last.went_back)
        mixed, other = take(e, i, tokens), take(never, i, tokens)
        if went:
            assert not torch.equal(e.last.nll_adapted, never.last.nll_adapted)
            return
        assert torch.equal(mixed, other) and torch.equal(e.last.nll_adapted, never.last.nll_adapted)
    raise AssertionError("no alarm")


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("reset", [HALF, SLOWER, RING], ids=["half", "slower", "ring"])
def test_later_tokens_move_no_earlier_score(reset, memory):
    """Score first, through alarms: tokens from any place on are others, and all scores before are the same bits."""
    steps = spliced()
    whole, alarms = engine(reset, memory=MEMORIES[memory]), 0
    scores = []
    for i, tokens in enumerate(steps):
        scores.append(take(whole, i, tokens))
        alarms += len(whole.last.went_back)
    assert alarms, "nothing was tried"
    for cut in (6, 7, 9, 11):
        e, place = engine(reset, memory=MEMORIES[memory]), cut % T
        for i, tokens in enumerate(steps[: cut + 1]):
            if i == cut:
                tokens = tokens.clone()
                tokens[:, place + 1 :] = text(77)[:, place + 1 :]
            seen = take(e, i, tokens)
            assert torch.equal(seen[:, : place if i == cut else T], scores[i][:, : place if i == cut else T]), (cut, i)


@pytest.mark.parametrize("reset", [HALF, SLOWER, RING], ids=["half", "slower", "ring"])
def test_resumed_and_rolled_back_bit_for_bit(reset, tmp_path):
    """At every point of a text with alarms: a saved engine, and a stream put back by a snapshot, go on as the first did."""
    options, steps = {"memory": MEMORIES["keep"]}, spliced()
    for cut in (3, 6, 7, 8):
        e, other = engine(reset, **options), engine(reset, **options)
        for i, tokens in enumerate(steps[:cut]):
            take(e, i, tokens)
        e.save(tmp_path / str(cut))
        other.restore(tmp_path / str(cut))
        taken = [e.snapshot(s) for s in range(2)]
        go_on = lambda each: [(take(each, i, steps[i]), dict(each.last.went_back)) for i in range(cut, len(steps))]  # noqa: B023, E731
        scores, again = go_on(e), go_on(other)
        assert cut > 6 or any(went for _, went in scores)
        assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(scores, again))
        assert_equal(state_of(e), state_of(other), but=["last", "flops"])
        for s, snapshot in enumerate(taken):
            e.rollback(s, snapshot)
        assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(scores, go_on(e)))


@pytest.mark.parametrize("reset", [HALF, SLOWER, RING], ids=["half", "slower", "ring"])
def test_streams_of_different_ranks_go_back_as_each_alone(reset):
    ways, memory = [LoRA(2), LoRA(4)], MEMORIES["keep"]
    e, alone = engine(reset, adapt=ways, memory=memory), [engine(reset, adapt=way, memory=memory, streams=1) for way in ways]
    went = 0
    for i, tokens in enumerate(spliced(8)):
        scores = take(e, i, tokens[:1].repeat(2, 1))
        for stream, each in enumerate(alone):
            torch.testing.assert_close(scores[stream], take(each, i, tokens)[0], rtol=1e-4, atol=1e-4)
            assert e.last.went_back.get(stream) == each.last.went_back.get(0)
        went += len(e.last.went_back)
    assert went


def test_enter_and_reset():
    e = engine(Alarm(0.5, ring=2, every=2, slower=0.5))
    for i, tokens in enumerate(spliced()):
        take(e, i, tokens)
    alarms = e.guarding.alarms
    assert alarms.held(0) == 2 and min(alarms.calm) < 16
    calm = list(alarms.calm)
    alarms.table.fill_(0.1)
    e.enter(0)
    assert alarms.table.tolist() == [0.0, pytest.approx(0.1)] and alarms.held(0) == 2 and alarms.calm == calm
    e.reset(0)
    assert alarms.held(0) == 0 and alarms.held(1) == 2 and alarms.calm[0] == 16 and not alarms.ring[0]["master"].any()


def test_auto_is_the_default_alarm():
    e, other = engine("auto"), engine(Alarm())
    for i, tokens in enumerate(spliced()):
        assert torch.equal(take(e, i, tokens), take(other, i, tokens)) and e.last.was_reset == other.last.was_reset
    assert set(e.guarding.tensors()) == set(other.guarding.tensors())


def test_refusals():
    for options, message in [
        ({"guard": None}, "reset=Alarm.*with guard=None"),
        ({"adapt": Full("mlp")}, "only adapters go part of the way"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine(HALF, **options)
    with pytest.raises(ValueError, match="reset=Alarm.*with rates"):
        RateMixture(MODEL, [0.01, 0.02], guard="exact", reset=HALF, adapt=LoRA(2))
    with pytest.raises(ValueError, match="with forward_backward"):
        engine(SLOWER).forward_backward(text())
    for given, message in [
        ({"nats": 0}, "nats=0"),
        ({"back": 1.5}, "back=1.5"),
        ({"ring": -1}, "ring=-1"),
        ({"every": 0}, "every=0"),
        ({"slower": 0}, "slower=0"),
        ({"recover": 0.5}, "recover=0.5"),
        ({"back": 0.5, "ring": 4}, "back=0.5 with ring=4"),
    ]:
        with pytest.raises(ValueError, match=message):
            Alarm(**given)
    for word in ("auto:", "auto:back", "auto:back=x", "auto:speed=1", "auto:ring=1,ring=2", "auto:back=2"):
        with pytest.raises(ValueError, match="reset=.*auto:"):
            engine(word)
    assert engine(RING.word).settings.reset == RING and Alarm().word == "auto"
