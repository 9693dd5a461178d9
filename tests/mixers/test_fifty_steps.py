"""Fifty updates of four rules beside their equations, written anew with 50 digits, where there is one in closed form: what adds up over a run, not one
update.

Losses and batches are drawn; in some steps a domain is absent, as in small batches.
"""

from decimal import Decimal, getcontext

import numpy as np
import pytest

from dynadapt.experiments.mixers import ADO, ODM, DoReMi, Velocitune

STEPS, DOMAINS = 50, ["code", "prose", "manual", "log"]
INITIAL = [0.4, 0.3, 0.2, 0.1]
NONE: dict[str, float] = {}


@pytest.fixture(autouse=True)
def digits():
    before, getcontext().prec = getcontext().prec, 50
    yield
    getcontext().prec = before


def named(values) -> dict[str, float]:
    return dict(zip(DOMAINS, map(float, values)))


def normalised(values: list[Decimal]) -> list[Decimal]:
    return [value / sum(values) for value in values]


def losses(seed: int, low: float, high: float, absent: bool = False) -> list[dict[str, float]]:
    """Of each step; with ``absent`` every third leaves a domain out, the first none."""
    rng = np.random.default_rng(seed)
    rows = [named(rng.uniform(low, high, len(DOMAINS))) for _ in range(STEPS)]
    for step in range(1, STEPS, 3) if absent else ():
        del rows[step][DOMAINS[int(rng.integers(len(DOMAINS)))]]
    return rows


def apart(weights: dict[str, float], exact: list[Decimal]) -> float:
    return max(abs(float(Decimal(weight) - value)) for weight, value in zip(weights.values(), exact))


def test_velocitune_is_its_start_times_the_exponential_of_all_velocities():
    start, target = [3.1, 2.7, 4.9, 2.2], [2.0, 2.1, 3.0, 1.9]
    mixer = Velocitune(DOMAINS, named(INITIAL), start=named(start), target=named(target))
    total, worst = [Decimal(0)] * 4, 0.0
    for step, row in enumerate(losses(1, 1.8, 4.0), 1):
        way = [(Decimal(row[d]) - Decimal(t)) / (Decimal(s) - Decimal(t)) for d, s, t in zip(DOMAINS, start, target)]
        total = [so_far + min(max(v, Decimal(0)), Decimal(1)) for so_far, v in zip(total, way)]
        exact = normalised([Decimal(w) * so_far.exp() for w, so_far in zip(INITIAL, total)])
        worst = max(worst, apart(mixer.update(step, row, NONE), exact))
    assert worst < 2e-15


def test_doremi_moves_by_the_excess_and_keeps_an_absent_domains_last():
    eps, eta = 1e-3, 0.7
    mixer = DoReMi(DOMAINS, named([0.25] * 4), eps=eps, eta=eta)
    weights, last, total, worst = [Decimal("0.25")] * 4, {}, [Decimal("0.25")] * 4, 0.0
    for step, row in enumerate(losses(2, 0.0, 0.4, absent=True), 1):
        last |= row
        moved = normalised([w * (Decimal(eta) * Decimal(last[d])).exp() for w, d in zip(weights, DOMAINS)])
        weights = [(1 - Decimal(eps)) * share + Decimal(eps) / 4 for share in moved]
        total = [so_far + w for so_far, w in zip(total, weights)]
        worst = max(worst, apart(mixer.update(step, row, NONE), weights))
    assert worst < 2e-15 and apart(mixer.static_weights, [so_far / (STEPS + 1) for so_far in total]) < 2e-15


@pytest.mark.parametrize("rule", ["linear", "exponential"])
def test_odm_rewards_are_sums_over_the_steps_that_a_domain_was_in(rule):
    mixer = ODM(DOMAINS, named(INITIAL), rule=rule)
    rows, worst, before = losses(3, 1.0, 3.0, absent=True), 0.0, Decimal(1) / 4
    if rule == "exponential":
        rows = [
            {name: row[name]} for name, row in ((DOMAINS[step % 4], dict.fromkeys(DOMAINS, 2.0) | row) for step, row in enumerate(rows))
        ]
    smoothing = Decimal(0.9)
    for step, row in enumerate(rows, 1):
        seen = {d: [Decimal(past[d]) for past in rows[:step] if d in past] for d in DOMAINS}
        reward = [
            sum(((1 - smoothing) * smoothing ** (len(of) - 1 - i) * loss.exp() for i, loss in enumerate(of)), Decimal(0))
            for of in seen.values()
        ]
        eps = min(Decimal(1) / 4, (Decimal(4).ln() / (4 * step)).sqrt())
        shares = normalised(reward) if rule == "linear" else normalised([(before * r).exp() for r in reward])
        worst = max(worst, apart(mixer.update(step, row, NONE), [(1 - 4 * eps) * share + eps for share in shares]))
        before = eps
    assert worst < 2e-15


def test_ado_mixes_the_mean_of_all_its_shares_with_the_last():
    """With the laws of one fit: rhobar after t steps is the mean of the initial weights and t shares."""
    laws = [(2.0, 0.8, 0.3), (1.0, 0.7, 0.2), (3.0, 0.9, 0.02), (2.5, 0.6, 0.7)]
    mixer = ADO(DOMAINS, named(INITIAL), sample_tokens=10, start=1000)
    mixer._parameters = np.array(laws)
    rng, worst = np.random.default_rng(4), 0.0
    decimals = lambda values: [Decimal(float(value)) for value in values]  # noqa: E731
    history, past, n = decimals(INITIAL), [decimals(INITIAL)], Decimal(0)
    for step, row in enumerate(losses(4, 1.0, 3.0), 1):
        tokens = [int(count) * (step % 3 > 0 or i < 3) for i, count in enumerate(rng.integers(10, 200, 4))]
        n += Decimal(sum(tokens)) / 10
        history = [Decimal(0.9) * h + Decimal(0.1) * count / sum(tokens) for h, count in zip(history, tokens)]
        slope = [max(Decimal(b), Decimal(0.05)) * (Decimal(a) - Decimal(b) * n.ln()).exp() / n for a, _, b in laws]
        rho = normalised([Decimal(mu) * h.sqrt() * s for mu, h, s in zip(INITIAL, history, slope)])
        rho = normalised([max(share, Decimal(0.01)) for share in rho])
        mean = [sum(column) / len(past) for column in zip(*past)]
        exact = [Decimal(0.9) * m + Decimal(0.1) * share for m, share in zip(mean, rho)]
        past.append(rho)
        worst = max(worst, apart(mixer.update(step, row, dict(zip(DOMAINS, tokens))), exact))
    assert worst < 2e-15
