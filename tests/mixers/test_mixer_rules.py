"""Each rule against its published equation: numbers of the papers where there are some, else the equation written out otherwise."""

import math

import numpy as np
import pytest

from dynadapt.experiments.mixers import ADO, ODM, DoReMi, DynamicBatchLoading, SkillIt, Stratified, Velocitune, excess, proportions
from dynadapt.experiments.mixers.ado import GRID, fit_law, law_error

DOMAINS = ["code", "prose", "manual"]
EQUAL = dict.fromkeys(DOMAINS, 1 / 3)
NONE = {}


def named(*values, domains=DOMAINS):
    return dict(zip(domains, values))


def close(weights, *expected, within=1e-12):
    assert list(weights.values()) == pytest.approx(list(expected), abs=within, rel=0)


def softmax(*values):
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


# ------------------------------------------------------------------------------------------------------------- Velocitune


def test_velocitune_gives_the_reference_weights():
    mixer = Velocitune(DOMAINS, EQUAL, start=named(3.0, 3.0, 3.0), target=named(2.0, 2.0, 2.0))
    weights = mixer.update(1, named(3.0, 2.5, 2.0), NONE)  # V = 1, .5, 0
    close(weights, 0.506480, 0.307196, 0.186324, within=5e-7)
    assert mixer.velocity == named(1.0, 0.5, 0.0)


def test_velocitune_changes_nothing_at_the_start():
    start = named(3.1, 2.7, 4.9)
    mixer = Velocitune(DOMAINS, named(0.2, 0.7, 0.1), start=start, target=named(2.0, 2.6, 1.0))
    close(mixer.update(1, start, NONE), 0.2, 0.7, 0.1)


def test_velocitune_compounds_a_lasting_gap():
    mixer = Velocitune(["a", "b"], {"a": 0.5, "b": 0.5}, start={"a": 2.0, "b": 2.0}, target={"a": 1.0, "b": 1.0})
    for step in range(1, 21):
        weights = mixer.update(step, {"a": 1.7, "b": 1.5}, NONE)
    assert weights["a"] / weights["b"] == pytest.approx(math.exp(4), rel=1e-9)  # 0.2 apart, 20 times: 55


def test_velocitune_stays_between_zero_and_one():
    mixer = Velocitune(["a", "b"], {"a": 0.5, "b": 0.5}, start={"a": 2.0, "b": 2.0}, target={"a": 1.0, "b": 1.0})
    mixer.update(1, {"a": 0.5, "b": 2.5}, NONE)
    assert mixer.velocity == {"a": 0.0, "b": 1.0}


# ----------------------------------------------------------------------------------------------------------------- DoReMi


def test_doremi_moves_by_the_clipped_excess_of_tokens():
    proxy, reference, domain = np.array([2.0, 1.0, 5.0, 3.0]), np.array([1.0, 2.0, 3.0, 3.0]), np.array([0, 0, 1, 2])
    losses = excess(proxy, reference, domain, DOMAINS)
    assert losses == named(0.5, 2.0, 0.0)  # (1 + 0) / 2: clipped before the mean
    mixer = DoReMi(DOMAINS, EQUAL, eps=1e-3)
    expected = [0.999 * share + 0.001 / 3 for share in softmax(0.5, 2.0, 0.0)]
    close(mixer.update(1, losses, NONE), *expected)
    close(mixer.static_weights, *[(1 / 3 + weight) / 2 for weight in expected])


def test_doremi_weights_the_loss_and_draws_evenly():
    mixer = DoReMi(["a", "b"], {"a": 0.5, "b": 0.5}, drawn={"a": 0.8, "b": 0.2})
    mixer._weights = np.array([0.6, 0.4])
    assert mixer.sampling == {"a": 0.8, "b": 0.2}
    factors = mixer.token_weights({"a": 30, "b": 10})
    assert factors["b"] / factors["a"] == pytest.approx((0.4 / 0.2) / (0.6 / 0.8))
    assert 30 * factors["a"] + 10 * factors["b"] == pytest.approx(40)
    assert mixer.token_weights({"b": 7}) == {"b": pytest.approx(1.0)}
    drawing = DoReMi(["a", "b"], {"a": 0.6, "b": 0.4}, acts="sampling")
    assert drawing.sampling == {"a": 0.6, "b": 0.4} and drawing.token_weights({"a": 3, "b": 1}) == {"a": 1.0, "b": 1.0}


def test_doremi_takes_ln_vocabulary_for_a_domain_not_seen_yet():
    mixer = DoReMi(["a", "b"], {"a": 0.5, "b": 0.5}, vocabulary=100, eps=0.0, unseen="vocabulary")
    weights = mixer.update(1, {"a": 0.5}, NONE)
    close(weights, *softmax(0.5, math.log(100)))


def test_doremi_gives_a_domain_not_seen_yet_the_mean_of_the_others():
    mixer = DoReMi(DOMAINS, EQUAL, eps=0.0)
    weights = mixer.update(1, {"code": 0.5, "prose": 0.1}, NONE)
    close(weights, *softmax(0.5, 0.1, 0.3))
    assert mixer.notes == ("manual: in no batch yet, the mean excess of the others 0.3000 is used",)
    weights = mixer.update(2, {"code": 0.7, "manual": 0.2}, NONE)  # prose keeps its own
    close(weights, *softmax(0.5 + 0.7, 0.1 + 0.1, 0.3 + 0.2))
    assert len(mixer.notes) == 1 and mixer.notes[0].startswith("prose: absent, its last excess 0.1000")
    close(DoReMi(DOMAINS, EQUAL, eps=0.0).update(1, {}, NONE), 1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize("rows, unseen, most", [(4, "mean", 1 / 9), (4, "vocabulary", None), (64, "mean", 1 / 9)])
def test_equal_excesses_move_no_doremi_weight_whatever_the_batch_holds(rows, unseen, most):
    """Nine domains, equally far behind. As published one of them, which small batches happened to leave out, takes most of the weight."""
    from dynadapt.experiments.reweight.sampler import Sampler

    domains = [f"d{i}" for i in range(9)]
    equal, largest = dict.fromkeys(domains, 1 / 9), []
    for seed in range(5):
        sampler = Sampler(dict.fromkeys(domains, 10_000), "repeat", seed)
        mixer = DoReMi(domains, equal, vocabulary=4096, unseen=unseen, rows=rows, small_batches=True)
        for step in range(1, 31):
            present = {name for name, _ in sampler.draw(step, rows, mixer.sampling)}
            weights = mixer.update(step, dict.fromkeys(present, 0.3), NONE)
        largest.append(max(weights.values()))
    assert max(largest) == pytest.approx(most) if most else np.mean(largest) > 0.8


# ------------------------------------------------------------------------------------------------- dynamic batch loading

SHEARED = ["cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4"]
PROPORTIONS = named(0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15, domains=SHEARED)
TARGET = named(1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251, domains=SHEARED)  # 1.3B
AFTER_PRUNING = named(0.2192, 0.0002, 0.0791, 0.0064, 0.0096, 0.0010, 0.6845, domains=SHEARED)


def test_dynamic_batch_loading_reaches_the_published_weights_from_the_published_start():
    """The losses that lead there in 20 evaluations, from log w' = log w + d for each: c = 1e-4 moves the end by less than a rounding."""
    mixer = DynamicBatchLoading(SHEARED, PROPORTIONS, target=TARGET)
    distance = {domain: math.log(AFTER_PRUNING[domain] / PROPORTIONS[domain]) / 20 + 0.3 for domain in SHEARED}
    for step in range(1, 21):
        weights = mixer.update(step, {domain: TARGET[domain] + distance[domain] for domain in SHEARED}, NONE)
    close(weights, *AFTER_PRUNING.values(), within=1e-3)
    assert mixer.distance == pytest.approx(distance)


@pytest.mark.parametrize(
    "rule, clip, exponent", [("doremi", False, (1.0, 0.5, -1.0)), ("doremi", True, (1.0, 0.5, 0.0)), ("bandit", False, (1.0, 0.5, -1.0))]
)
def test_dynamic_batch_loading_rules(rule, clip, exponent):
    initial = (0.2, 0.3, 0.5)
    mixer = DynamicBatchLoading(DOMAINS, named(*initial), target=named(2.0, 2.0, 2.0), rule=rule, clip=clip)
    start = [math.log(weight) if rule == "doremi" else weight for weight in initial]
    expected = softmax(*(weight + power for weight, power in zip(start, exponent)))
    close(mixer.update(1, named(3.0, 2.5, 1.0), NONE), *[(1 - 1e-4) * weight + 1e-4 / 3 for weight in expected])


def test_dynamic_batch_loading_can_stay():
    mixer = DynamicBatchLoading(DOMAINS, named(0.2, 0.3, 0.5), target=EQUAL, rule="constant")
    close(mixer.update(1, named(3.0, 2.5, 1.0), NONE), 0.2, 0.3, 0.5)


# -------------------------------------------------------------------------------------------------------------------- ODM


def test_odm_linear_rule():
    mixer = ODM(DOMAINS, EQUAL)
    reward = [0.1 * math.exp(2.0), 0.1 * math.exp(1.0), 0.0]
    eps = min(1 / 3, math.sqrt(math.log(3) / (3 * 100)))
    close(mixer.update(100, {"code": 2.0, "prose": 1.0}, NONE), *[(1 - 3 * eps) * r / sum(reward) + eps for r in reward])
    reward = [0.9 * reward[0], 0.9 * reward[1] + 0.1 * math.exp(1.5), 0.0]
    reward[0] = 0.1 * math.exp(2.0)  # not in this step: stays
    eps = math.sqrt(math.log(3) / (3 * 101))
    close(mixer.update(101, {"prose": 1.5}, NONE), *[(1 - 3 * eps) * r / sum(reward) + eps for r in reward])


def test_odm_exponential_rule_uses_the_exploration_of_the_update_before():
    mixer = ODM(DOMAINS, EQUAL, rule="exponential")
    before, reward = 1 / 3, [0.0, 0.0, 0.0]
    for step, (index, loss) in enumerate([(0, 2.0), (1, 3.0), (0, 1.0)], start=50):
        weights = mixer.update(step, {DOMAINS[index]: loss}, NONE)
        reward[index] = 0.9 * reward[index] + 0.1 * math.exp(loss)
        eps = math.sqrt(math.log(3) / (3 * step))
        close(weights, *[(1 - 3 * eps) * share + eps for share in softmax(*(before * r for r in reward))])
        before = eps


def test_odm_explores_evenly_at_first_and_waits_for_its_warmup():
    close(ODM(DOMAINS, named(0.5, 0.3, 0.2)).update(1, named(5.0, 1.0, 1.0), NONE), 1 / 3, 1 / 3, 1 / 3)
    mixer = ODM(DOMAINS, named(0.5, 0.3, 0.2), warmup=10)
    close(mixer.update(10, named(5.0, 1.0, 1.0), NONE), 0.5, 0.3, 0.2)
    assert mixer.reward == named(0.0, 0.0, 0.0)


# --------------------------------------------------------------------------------------------------------------- Skill-it


def test_skill_it_sums_the_last_three_losses_over_the_graph():
    mixer = SkillIt(DOMAINS, EQUAL, graph={"code": {"manual": 0.5}})
    losses = [(3.0, 2.0, 4.0), (2.9, 2.0, 3.5), (2.8, 2.0, 3.0), (2.7, 2.0, 2.5)]
    for step, row in enumerate(losses, start=1):
        weights = mixer.update(step, named(*row), NONE)
        window = losses[max(0, step - 3) : step]
        code, prose, manual = (sum(row[index] for row in window) for index in range(3))
        close(weights, *softmax(0.2 * (code + 0.5 * manual), 0.2 * prose, 0.2 * manual))


# -------------------------------------------------------------------------------------------------------------------- ADO


def test_ado_law_gradient_is_that_of_its_error():
    log_n, log_loss = np.log(np.arange(100.0, 2000.0, 50.0)), np.log(np.linspace(3.5, 2.2, 38))
    for parameters in ([0.4, 0.7, 0.3], [7.0, -0.4, 0.9], [1.0, 0.6, -0.1]):
        _, gradient = law_error(np.array(parameters), log_n, log_loss)
        numeric = [
            (law_error(np.array(parameters) + step, log_n, log_loss)[0] - law_error(np.array(parameters) - step, log_n, log_loss)[0]) / 2e-6
            for step in np.eye(3) * 1e-6
        ]
        assert gradient == pytest.approx(numeric, abs=1e-6)


def test_ado_law_is_found():
    n = np.arange(1000.0, 60000.0, 500.0)
    a, e, alpha = fit_law(n, np.exp(0.8) + np.exp(3.0) / n**0.4, starts=32)
    assert (a, e, alpha) == pytest.approx((3.0, 0.8, 0.4), abs=0.1)
    assert GRID.shape == (512, 3)


def test_ado_mixes_by_the_slope_of_its_law():
    mu, law = np.array([0.5, 0.3, 0.2]), np.array([[2.0, 0.8, 0.3], [1.0, 0.7, 0.2], [3.0, 0.9, 0.02]])
    mixer = ADO(DOMAINS, named(*mu), sample_tokens=10, start=1000)
    mixer._parameters = law
    history, mean, n = mu.copy(), mu.copy(), 0
    for step in range(1, 4):
        tokens = np.array([60, 40 * step, 0])
        n += tokens.sum() / 10
        history = 0.9 * history + 0.1 * tokens / tokens.sum()
        slope = np.maximum(law[:, 2], 0.05) * (np.exp(law[:, 0]) / n ** law[:, 2]) / n
        rho = mu * history**0.5 * slope
        rho = np.maximum(rho / rho.sum(), 0.01)
        rho /= rho.sum()
        close(mixer.update(step, named(2.0, 2.0, 2.0), named(*tokens.tolist())), *(0.9 * mean + 0.1 * rho))
        mean = (1 - 1 / (step + 1)) * mean + rho / (step + 1)


def test_ado_turns_to_the_domain_that_still_improves():
    mixer = ADO(["flat", "falling"], {"flat": 0.5, "falling": 0.5}, sample_tokens=1, ignore=20, start=150, refit=50, starts=4)
    for step in range(1, 301):
        n = 32 * step
        weights = mixer.update(step, {"flat": 2.0 + 1e-3 / n, "falling": 2.0 + 10 / n**0.4}, {"flat": 16, "falling": 16})
        assert step >= 150 or weights == {"flat": 0.5, "falling": 0.5}
    assert weights["falling"] > 0.7 and set(mixer.law) == {"flat", "falling"}


# ----------------------------------------------------------------------------------------------------------------- static


def test_static_mixes():
    close(Stratified(DOMAINS).update(1, NONE, NONE), 1 / 3, 1 / 3, 1 / 3)
    assert proportions(DOMAINS, named(600, 300, 100)) == pytest.approx(named(0.6, 0.3, 0.1))
