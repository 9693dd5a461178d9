"""Learners of one text at several rates are those that run alone, and their mixture is as good as the best of them up to its bound."""

import math

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import SGD, Adam, Engine, LoRA, Overlap, SegmentMemory
from dynadapt.adapt.mixture import Mixture, regret
from dynadapt.engine.rate_mixture import RateMixture
from dynadapt.model import ModelError, random_model, tiny_config

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T, RATES = 8, (0.0, 0.02, 1e30)
GIVEN = {"adapt": LoRA(2), "optimizer": SGD(lr=1.0, clip=0), "backend": "cpu", "dtype": "fp32", "segment": T, "memory": SegmentMemory(6, 2)}


def mixture(rates=RATES, **options):
    return RateMixture(MODEL, rates, **{**GIVEN, **options})


def text(seed=0, rows=1, length=T):
    return torch.randint(100, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("guard", [None, "exact"])
def test_learners_are_those_alone(guard, static):
    options = {"static": static, "backend": "reference" if static else "cpu"}
    m = mixture(streams=2, guard=guard, **options)
    alone = [Engine(MODEL, **{**GIVEN, **options, "optimizer": SGD(lr=rate, clip=0), "streams": 2}) for rate in RATES]
    still = Engine(MODEL, **{**GIVEN, **options, "adapt": None, "optimizer": None, "streams": 2})
    twin = Mixture(2, len(RATES) + (guard is not None), 1e-4)
    for seed, lengths in enumerate(([T, 3], [0, T], None)):
        mixed, experts = m.step(text(seed, 2), lengths), [each.step(text(seed, 2), lengths) for each in alone]
        if static:
            torch.testing.assert_close(m.last.nll_adapted, torch.stack(experts, 1), equal_nan=True)
        else:
            assert torch.equal(m.last.nll_adapted.nan_to_num(-1.0), torch.stack(experts, 1).nan_to_num(-1.0))
        prior = still.step(text(seed, 2), lengths)
        if guard:
            assert torch.equal(m.last.nll_static, prior)
        else:
            assert m.last.nll_static is None
        expected, _ = twin.mix([0, 1], [prior, *experts] if guard else experts, lengths or [T, T])
        torch.testing.assert_close(mixed, expected)
        assert torch.isfinite(mixed).all()
    once = still.flops["forward"] if guard else 0
    upper = mixture(streams=2, guard=guard, adapt=LoRA(2, layers=range(1, 2)), **options)
    for seed, lengths in enumerate(([T, 3], [0, T], None)):
        upper.step(text(seed, 2), lengths)
    assert not guard or torch.equal(upper.last.nll_static, m.last.nll_static), "from layer 1 on, with what enters it from the first learner"
    assert m.flops["forward"] == sum(each.flops["forward"] for each in alone) + once, "the prior is scored once for all"
    assert list(m.weights(1)) == ["prior"] * bool(guard) + ["0", "0.02", "1e+30"]
    assert sum(m.weights(1).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("guard", [None, "exact", 3])
def test_as_good_as_the_best_rate(guard):
    rates = [0.0, 1e-3, 0.02, 5.0, 1e30]
    m, kinds, one = mixture(rates, guard=guard, optimizer=Adam(clip=0)), [], text(50)
    for seed in range(12):
        mixed = m.step(one if seed % 3 else text(seed))
        kinds.append((mixed[0].double(), m.last.nll_adapted[0].double()))
    mixed, adapted = torch.stack([a for a, _ in kinds]), torch.cat([b for _, b in kinds], 1).nan_to_num(math.inf, math.inf, math.inf)
    assert m.last.guard_bound == [regret(12 * T, len(rates) + (guard is not None), 1e-4)]
    assert mixed.sum() <= adapted.sum(1).min() + m.last.guard_bound[0] + 1e-4
    assert adapted.sum(1).min() < adapted[0].sum() - 1.0, "some rate is worth it"


def test_losers_rest():
    """After each ``halve`` segments the worse half of the learners costs nothing; a new document brings all back that are the prior again."""
    rates = [0.0, 0.01, 0.02, 1e30]
    m, whole, one = mixture(rates, halve=2, guard="exact"), mixture(rates, guard="exact"), text(50)
    costs, totals = [], torch.zeros(4, dtype=torch.float64)
    for seed in range(6):
        before = m.flops["backward"]
        mixed = m.step(one)
        full = whole.step(one)
        costs.append(m.flops["backward"] - before)
        alive = torch.isfinite(m.last.nll_adapted[0]).all(1).tolist()
        if seed < 2:
            assert torch.equal(mixed, full)
            totals += whole.last.nll_adapted[0].double().sum(1).nan_to_num(math.inf, math.inf)
        elif seed < 4:
            assert sorted(alive) == [False, False, True, True]
            assert [k for k in range(4) if alive[k]] == sorted(totals.argsort()[:2].tolist())
        else:
            assert sum(alive) == 1
        assert torch.isfinite(mixed).all()
    assert costs[2] < 0.75 * costs[0] and costs[4] < 0.6 * costs[2]
    m.enter(0)
    m.step(one)
    assert torch.isfinite(m.last.nll_adapted[0]).all(1).sum() == 1, "without a reset the others would be behind"
    again = mixture(rates, halve=1, reset="document")
    for _ in range(3):
        again.step(one)
    assert sum(again.engine.guarding.halving.alive[0]) == 1
    again.enter(0)
    again.step(one)
    assert torch.isfinite(again.last.nll_adapted[0]).all(1).sum() == 4


@pytest.mark.parametrize("options", [{"guard": 2, "halve": 2}, {"memory": Overlap(5), "guard": "exact"}, {"halve": 1}], ids=str)
def test_saved_states(tmp_path, options):
    """With a learner that diverged long ago, too."""
    m = mixture(streams=2, **options)
    for seed in range(4):
        m.step(text(seed, 2), [T, 5])
    m.save(tmp_path)
    again = mixture(streams=2, **options)
    again.restore(tmp_path)
    for seed in range(4, 7):
        if seed == 5:
            m.enter(1), again.enter(1)
        assert torch.equal(m.step(text(seed, 2)), again.step(text(seed, 2)))
    assert_equal(state_of(m.engine), state_of(again.engine), but=["last"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rates": [1e-3]}, "rates=.*two or more different learning rates"),
        ({"rates": [1e-3, 1e-3]}, "rates=.*two or more different"),
        ({"rates": [1e-3, -1.0]}, "rates=-1.0"),
        ({"rates": "1e-3"}, "rates='1e-3'"),
        ({"shared": True}, "shared=True with rates"),
        ({"adapt": None, "optimizer": None}, "adapt=None with rates"),
        ({"halve": 0}, "halve=0: expected an integer of at least 1"),
        ({"guard": "always"}, "guard='always'"),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(ValueError, match=message):
        mixture(**wrong)


@pytest.mark.parametrize(
    "saved, here",
    [({}, {"rates": (0.0, 0.02, 0.3)}), ({"guard": "exact"}, {"guard": 2}), ({"halve": 1}, {"halve": 2}), ({}, None)],
    ids=str,
)
def test_a_state_of_another_mixture_is_refused(tmp_path, saved, here):
    m = mixture(**saved)
    m.step(text())
    m.save(tmp_path)
    other = Engine(MODEL, **GIVEN, streams=len(RATES)) if here is None else mixture(**here)
    before = state_of(other if here is None else other.engine)
    with pytest.raises(ModelError, match=r"saved with mixture=\{'rates'"):
        other.restore(tmp_path)
    assert_equal(state_of(other if here is None else other.engine), before)


def test_arguments_of_a_step():
    m = mixture(streams=2)
    for arguments in ({"tokens": text(0, 3)}, {"tokens": text(0, 2), "lengths": [1]}, {"tokens": text(0, 2), "streams": [0, 2]}):
        with pytest.raises(ValueError, match="^(tokens|lengths|streams)"):
            m.step(**arguments)
    assert torch.isfinite(m.step(text(1, 1), streams=[1])).all()
    with pytest.raises(ValueError, match="stream=2"):
        m.enter(2)
    with pytest.raises(ValueError, match="one of 3 learners whose scores are mixed"):
        m.engine.snapshot(0)
    assert "RateMixture((0.0, 0.02, 1e+30), guard=None, halve=None, of Engine(" in repr(m)
    assert "3 streams are learners of one text, mixed by fixed share 0.0001" in m.explain()


@pytest.mark.parametrize("streams, lengths", [([1], [T]), ([0, 3, 1], [T] * 3), ([0, 1, 2], [T, 3, T]), ([0, 1, 2], [T] * 3)], ids=str)
def test_rows_that_are_no_mixture_are_refused_and_change_nothing(streams, lengths):
    m = mixture(streams=2, guard="exact")
    m.step(text(0, 2))
    before = state_of(m.engine)
    for call in (m.engine.step, m.engine.forward_backward):
        with pytest.raises(ValueError, match="streams=.* learners of one text"):
            call(text(1, len(streams)), lengths, streams)
    assert_equal(state_of(m.engine), before)
    assert torch.isfinite(m.step(text(1, 2))).all()


def test_close_rates_have_names_of_their_own():
    assert list(mixture((0.0012345678, 0.0012345679)).weights()) == ["0.0012345678", "0.0012345679"]


def test_a_context_outlives_the_learner_that_had_it():
    """With ``Overlap`` the prior's context is that of a learner that still runs."""
    m = mixture([1e30, 0.0], halve=1, guard="exact", memory=Overlap(5))
    still = Engine(MODEL, **{**GIVEN, "adapt": None, "optimizer": None, "memory": Overlap(5)})
    for seed in range(4):
        m.step(text(seed))
        assert torch.equal(m.last.nll_static, still.step(text(seed)))
    assert not torch.isfinite(m.last.nll_adapted[0, 0]).any()
