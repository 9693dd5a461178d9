"""What holds for every mixer: weights that sum to one, states that go on bit for bit, options that are off, and what is refused."""

import json
import math
import random

import pytest

from dynadapt.experiments.mixers import MIXERS, DoReMi, Exhausted, Fixed, MixerError, Shaping, Supply, Velocitune, make_mixer
from dynadapt.runs.rundir import write_json

DOMAINS = ["code", "prose", "manual"]
INITIAL = {"code": 0.5, "prose": 0.3, "manual": 0.2}
START, TARGET = {"code": 3.0, "prose": 3.5, "manual": 2.5}, {"code": 2.0, "prose": 3.0, "manual": 1.5}


@pytest.fixture
def settings(tmp_path):
    write_json(tmp_path / "summary.json", {"static_weights": INITIAL})
    return {
        "velocitune": {"start": START, "target": TARGET},
        "dynamic-batch-loading": {"target": TARGET},
        "ado": {"sample_tokens": 8, "ignore": 2, "start": 32, "refit": 8, "window": 5, "starts": 2},
        "proportional": {"sizes": {"code": 50, "prose": 30, "manual": 20}},
        "replay": {"run": tmp_path},
        "doremi": {"vocabulary": 100},
    }


def stream(seed: int, domains=DOMAINS):
    """Losses that fall, with now and then an absent domain, and the tokens of each update."""
    generator = random.Random(seed)
    for step in range(1, 61):
        present = [d for d in domains if step == 1 or generator.random() > 0.2] or domains[:1]
        yield step, {d: 2.0 + generator.random() + 3 / step for d in present}, {d: generator.randrange(1, 500) for d in present}


@pytest.mark.parametrize("name", MIXERS)
def test_weights_sum_to_one_and_a_resumed_mixer_goes_on_bit_for_bit(name, settings):
    mixer, other = (make_mixer(name, DOMAINS, INITIAL, **settings.get(name, {})) for _ in range(2))
    for step, losses, tokens in stream(3):
        weights = mixer.update(step, losses, tokens)
        assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12) and min(weights.values()) >= 0
        if step == 37:
            other.load_state_dict(json.loads(json.dumps(mixer.state_dict(), allow_nan=False)))
            assert other.weights == weights
        elif step > 37:
            assert other.update(step, losses, tokens) == weights
    assert other.state_dict() == mixer.state_dict() and other.average == mixer.average and other.static_weights == mixer.static_weights
    assert weights != INITIAL or mixer.cadence == "never"


@pytest.mark.parametrize("name", MIXERS)
def test_one_domain_has_all_the_weight(name, settings, tmp_path):
    write_json(tmp_path / "summary.json", {"static_weights": {"code": 1.0}})
    of_one = {key: {"code": value["code"]} if isinstance(value, dict) else value for key, value in settings.get(name, {}).items()}
    mixer = make_mixer(name, ["code"], {"code": 1.0}, **of_one)
    for step, losses, tokens in stream(5, ["code"]):
        assert mixer.update(step, losses, tokens) == {"code": pytest.approx(1.0, abs=1e-12)}


def test_the_average_counts_tokens():
    mixer = Velocitune(["a", "b"], {"a": 0.5, "b": 0.5}, start={"a": 2.0, "b": 2.0}, target={"a": 1.0, "b": 1.0})
    assert mixer.average == {"a": 0.5, "b": 0.5}
    second = mixer.update(1, {"a": 2.0, "b": 1.0}, {"a": 60, "b": 40})  # 100 tokens under the initial weights
    mixer.update(2, {"a": 2.0, "b": 1.0}, {"a": 200, "b": 100})  # 300 under the second ones
    assert mixer.average["a"] == pytest.approx((100 * 0.5 + 300 * second["a"]) / 400)
    third = mixer.weights
    mixer.finish({"a": 50, "b": 50})  # 100 more after the last update
    assert mixer.average["a"] == pytest.approx((100 * 0.5 + 300 * second["a"] + 100 * third["a"]) / 500)
    assert mixer.static_weights == mixer.average


def test_a_run_is_replayed_as_its_average(tmp_path):
    write_json(tmp_path / "summary.json", {"static_weights": {"prose": 0.3, "code": 0.6, "manual": 0.1}})
    assert make_mixer("replay", DOMAINS, INITIAL, run=tmp_path).weights == pytest.approx({"code": 0.6, "prose": 0.3, "manual": 0.1})
    with pytest.raises(MixerError, match="its domains are prose, code, manual; here they are code"):
        make_mixer("replay", ["code"], {"code": 1.0}, run=tmp_path)
    with pytest.raises(MixerError, match="not a finished run"):
        make_mixer("replay", DOMAINS, INITIAL, run=tmp_path / "elsewhere")
    write_json(tmp_path / "summary.json", {"nll": 3.0})
    with pytest.raises(MixerError, match="not a reweighting run"):
        make_mixer("replay", DOMAINS, INITIAL, run=tmp_path)


# -------------------------------------------------------------------------------------------------------- a rule's bad days


def velocitune(**options):
    return Velocitune(DOMAINS, INITIAL, start=START, target=TARGET, **options)


def test_a_rising_domain_is_noted_and_by_default_gains_weight():
    mixer = velocitune()
    for step in range(1, 6):
        weights = mixer.update(step, {"code": 3.2, "prose": 3.1, "manual": 1.6}, {})
        assert len(mixer.notes) == 1 and "code" in mixer.notes[0] and "keeps growing" in mixer.notes[0]
    assert weights["code"] > 0.9


def test_a_rising_domain_can_be_held_down_or_stop_the_run():
    mixer = velocitune(rising="zero")
    weights = mixer.update(1, {"code": 3.2, "prose": 3.1, "manual": 1.6}, {})
    assert mixer.velocity["code"] == 0 and weights["code"] < INITIAL["code"] and "code" in mixer.notes[0]
    with pytest.raises(MixerError, match="code: held-out loss 3.2000 is above the 3.0000"):
        velocitune(rising="error").update(1, {"code": 3.2, "prose": 3.1, "manual": 1.6}, {})


@pytest.mark.parametrize("target", [3.0, 3.4, 2.9995])
def test_a_domain_without_headroom_is_refused_or_given_velocity_zero(target):
    targets = {**TARGET, "code": target}
    with pytest.raises(MixerError, match=f"'code' starts at 3.0000 and has target {target:.4f}"):
        Velocitune(DOMAINS, INITIAL, start=START, target=targets)
    mixer = Velocitune(DOMAINS, INITIAL, start=START, target=targets, flat="zero")
    weights = mixer.update(1, START, {})
    assert mixer.velocity == {"code": 0.0, "prose": 1.0, "manual": 1.0} and not mixer.notes
    assert weights["code"] == pytest.approx(0.5 / (0.5 + 0.5 * math.e))


@pytest.mark.parametrize("name", ["velocitune", "dynamic-batch-loading", "skill-it", "doremi"])
def test_an_absent_domain_keeps_its_last_value(name, settings):
    mixers = [make_mixer(name, DOMAINS, INITIAL, **settings.get(name, {})) for _ in range(2)]
    losses = {"code": 2.5, "prose": 3.2, "manual": 2.0}
    for mixer in mixers:
        mixer.update(1, losses, {})
    assert mixers[0].update(2, {d: losses[d] for d in ("code", "manual")}, {}) == mixers[1].update(2, losses, {})
    assert len(mixers[0].notes) == 1 and mixers[0].notes[0].startswith("prose: absent")


@pytest.mark.parametrize("name", ["dynamic-batch-loading", "skill-it"])
def test_a_domain_absent_from_the_start_is_refused(name, settings):
    with pytest.raises(MixerError, match="domain 'prose' is missing, and no earlier"):
        make_mixer(name, DOMAINS, INITIAL, **settings.get(name, {})).update(1, {"code": 2.0, "manual": 2.0}, {})


def test_doremi_refuses_batches_smaller_than_the_domains_unless_told():
    with pytest.raises(MixerError, match="rows 2: fewer than the 3 domains.*small_batches=true"):
        DoReMi(DOMAINS, INITIAL, rows=2)
    DoReMi(DOMAINS, INITIAL, rows=2, small_batches=True)
    DoReMi(DOMAINS, INITIAL, rows=3)


# ----------------------------------------------------------------------------------------------------------------- shaping


def test_shaping_steps_smooths_and_floors():
    losses = {"code": 2.0, "prose": 3.5, "manual": 1.5}  # V = 0, 1, 0
    full = velocitune().update(1, losses, {})
    half = velocitune(shaping=Shaping(step=0.5)).update(1, losses, {})  # the same as eta = 0.5
    assert half["prose"] / half["code"] == pytest.approx(0.3 / 0.5 * math.exp(0.5))
    smooth = velocitune(shaping=Shaping(smoothing=0.3)).update(1, losses, {})
    assert smooth["manual"] == pytest.approx(0.7 * full["manual"] + 0.1)
    mixer = velocitune(shaping=Shaping(floor=0.15))
    for step in range(1, 30):
        weights = mixer.update(step, losses, {})
    assert weights == pytest.approx({"code": 0.15, "prose": 0.7, "manual": 0.15})
    back = mixer.update(40, {"code": 3.0, "prose": 3.0, "manual": 1.5}, {})
    assert back["code"] > 0.3  # comes back from the floor at once


@pytest.mark.parametrize(
    "options, message",
    [
        ({"floor": 0.4}, "floor 0.4: 3 domains can't all have it; give at most 0.3333"),
        ({"floor": -0.1}, "floor -0.1"),
        ({"step": 0}, "step 0: give a number > 0"),
        ({"step": 2.0}, "step 2.0"),
        ({"smoothing": math.nan}, "smoothing nan"),
    ],
)
def test_shaping_that_does_not_fit_is_refused(options, message):
    with pytest.raises(MixerError, match=message):
        velocitune(shaping=Shaping(**options))


# ----------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "initial, message",
    [
        ({"code": 0.5, "prose": 0.3, "manual": 0.3}, "initial weights: they sum to 1.1, not to 1"),
        ({"code": 0.5, "prose": 0.5}, "initial weights: domain 'manual' is missing"),
        ({"code": 0.5, "prose": 0.3, "manual": 0.2, "novels": 0.0}, "initial weights: unknown domain 'novels'"),
        ({"code": 1.2, "prose": -0.2, "manual": 0.0}, "initial weights: domain 'prose' has -0.2"),
        ({"code": math.nan, "prose": 0.3, "manual": 0.2}, "initial weights: domain 'code' has nan"),
        ([0.5, 0.3, 0.2], "initial weights: give a dictionary"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(initial, message):
    with pytest.raises(MixerError, match=message):
        Fixed(DOMAINS, initial)


@pytest.mark.parametrize(
    "domains, message", [([], "none are given"), (["a", "a"], "'a' is given twice"), ("code", "give a list"), ([""], "'' is not a name")]
)
def test_domains_that_do_not_fit_are_refused(domains, message):
    with pytest.raises(MixerError, match=message):
        Fixed(domains, {})


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("velocity", {}, "mixer 'velocity': give one of velocitune, doremi"),
        ("velocitune", {"start": START}, "mixer 'velocitune': setting 'target' is missing"),
        ("velocitune", {"start": START, "target": {"code": 2.0, "prose": 2.0}}, "target losses: domain 'manual' is missing"),
        ("velocitune", {"start": START, "target": TARGET, "eta": 1.0}, "unknown setting 'eta'"),
        ("velocitune", {"start": START, "target": TARGET, "rising": "stop"}, "rising 'stop': give one of clamp, zero, error"),
        ("dynamic-batch-loading", {"target": {**TARGET, "novels": 1.0}}, "target losses: unknown domain 'novels'"),
        ("proportional", {"sizes": {"code": 5, "prose": 0, "manual": 1}}, "sizes: domain 'prose' is empty"),
        ("doremi", {"unseen": "zero"}, "unseen 'zero'"),
        ("doremi", {"unseen": "vocabulary"}, "unseen 'vocabulary': needs vocabulary"),
        ("doremi", {"small_batches": 1}, "small_batches 1: give true or false"),
        ("doremi", {"drawn": {"code": 1.0, "prose": 0.0, "manual": 0.0}}, "drawn: domain 'prose' has 0"),
        ("skill-it", {"graph": {"novels": {"code": 1.0}}}, "graph: unknown domain 'novels'"),
        ("ado", {"sample_tokens": 8, "start": 50}, "start 50: give a number >= 530"),
        ("odm", {"rule": "softmax"}, "rule 'softmax'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(MixerError, match=message):
        make_mixer(name, DOMAINS, INITIAL, **options)


@pytest.mark.parametrize(
    "step, losses, tokens, message",
    [
        (0, TARGET, {}, "step 0: give a whole number greater than 0"),
        (1.5, TARGET, {}, "step 1.5"),
        (1, {"novels": 1.0}, {}, "losses: unknown domain 'novels'"),
        (1, {"code": math.nan}, {}, "losses: domain 'code' has nan"),
        (1, {"code": -1.0}, {}, "losses: domain 'code' has -1.0"),
        (1, TARGET, {"code": -5}, "tokens: domain 'code' has -5"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_and_changes_nothing(step, losses, tokens, message):
    mixer = velocitune()
    before = mixer.state_dict()
    with pytest.raises(MixerError, match=message):
        mixer.update(step, losses, tokens)
    assert mixer.state_dict() == before


def test_a_step_that_was_done_is_refused_after_a_resume():
    mixer, other = velocitune(), velocitune()
    mixer.update(5, TARGET, {})
    other.load_state_dict(mixer.state_dict())
    with pytest.raises(MixerError, match="step 5: give a whole number greater than 5"):
        other.update(5, TARGET, {})


def test_a_state_of_another_mixer_is_refused():
    state = Fixed(DOMAINS, INITIAL).state_dict()
    with pytest.raises(MixerError, match="it is of mixer 'fixed', not 'velocitune'"):
        velocitune().load_state_dict(state)
    with pytest.raises(MixerError, match="its domains are code, prose, manual; here they are code, prose"):
        Fixed(["code", "prose"], {"code": 0.5, "prose": 0.5}).load_state_dict(state)
    with pytest.raises(MixerError, match="'velocity' is missing"):
        velocitune().load_state_dict({key: value for key, value in velocitune().state_dict().items() if key != "velocity"})


# ----------------------------------------------------------------------------------------------------------- out of data


def test_supply_stops():
    supply = Supply(["a", "b"], {"a": 3, "b": 100})
    supply.draw("a", 2)
    assert supply.sampling({"a": 0.5, "b": 0.5}) == {"a": 0.5, "b": 0.5} and supply.left("a") == 1
    with pytest.raises(Exhausted, match="domain 'a' is out of data after 2 of 3"):
        supply.draw("a", 2)
    assert supply.left("a") == 1


def test_supply_repeats():
    supply = Supply(["a", "b"], {"a": 4, "b": 100}, "repeat")
    supply.draw("a", 10)
    assert supply.epochs == {"a": 2.5, "b": 0.0} and supply.left("a") == 2
    assert supply.sampling({"a": 0.5, "b": 0.5}) == {"a": 0.5, "b": 0.5}


def test_supply_renormalises_and_goes_on_after_a_resume():
    supply, weights = Supply(["a", "b", "c"], {"a": 2, "b": 5, "c": 5}, "renormalise"), {"a": 0.5, "b": 0.3, "c": 0.2}
    supply.draw("a", 2)
    assert supply.sampling(weights) == pytest.approx({"a": 0.0, "b": 0.6, "c": 0.4})
    other = Supply(["a", "b", "c"], {"a": 2, "b": 5, "c": 5}, "renormalise")
    other.load_state_dict(json.loads(json.dumps(supply.state_dict())))
    assert other.sampling(weights) == supply.sampling(weights)
    other.draw("b", 5)
    other.draw("c", 5)
    with pytest.raises(Exhausted, match="every domain that has weight"):
        other.sampling(weights)


@pytest.mark.parametrize(
    "sizes, policy, message",
    [
        ({"a": 0, "b": 1}, "stop", "domain 'a' is empty"),
        ({"a": 1}, "stop", "'b' is missing"),
        ({"a": 1, "b": 1}, "wait", "policy 'wait': give one of stop, repeat, renormalise"),
    ],
)
def test_a_supply_that_does_not_fit_is_refused(sizes, policy, message):
    with pytest.raises(MixerError, match=message):
        Supply(["a", "b"], sizes, policy)
