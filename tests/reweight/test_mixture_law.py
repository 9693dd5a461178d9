"""The law of losses over mixtures: that it finds one that is known, says when there is none, and that its least is the least."""

from itertools import product

import numpy as np
import pytest

from dynadapt.experiments.reweight.mixture_law import Foresight, Law, LawError, best_mixture, check, fit_law, foresee

KNOWN = Law(0.4, np.array([-0.9, 0.3, 0.5, 0.2]))


def drawn(n: int, k: int = 4) -> np.ndarray:
    return np.random.default_rng([n, k]).dirichlet(np.ones(k), n)


def test_a_known_law_is_found():
    mixtures, unseen = drawn(24), drawn(200)
    law = fit_law(mixtures, KNOWN(mixtures))
    assert law(unseen) == pytest.approx(KNOWN(unseen), abs=2e-4) and law.flops > 0
    noisy = fit_law(mixtures, KNOWN(mixtures) + 0.005 * np.random.default_rng(1).standard_normal(24))
    assert np.abs(noisy(unseen) - KNOWN(unseen)).max() < 0.05
    wild = KNOWN(mixtures).copy()
    wild[3] += 2.0  # one run that went wrong: Huber's loss keeps it from leading
    assert np.abs(fit_law(mixtures, wild)(unseen) - KNOWN(unseen)).max() < 0.15


def test_unseen_mixtures_tell_a_law_from_none():
    mixtures = drawn(24)
    good = foresee(mixtures, KNOWN(mixtures) + 0.01 * np.random.default_rng(2).standard_normal(24))
    none = foresee(mixtures, 3.0 + 0.1 * np.random.default_rng(3).standard_normal(24))
    assert good.explained > 0.8 and none.explained < 0 and 0.005 < good.error < 0.05
    assert check({"code": good}, hold=False) == ()
    with pytest.raises(LawError, match=r"'prose': .* nats, the mean .*--unforeseen hold"):
        check({"code": good, "prose": none}, hold=False)
    assert check({"code": good, "prose": none}, hold=True) == ("prose",)
    with pytest.raises(LawError, match="'prose'"):
        check({"prose": none}, hold=True)
    assert Foresight(0.0, 0.0, 0).explained == 0.0  # equal losses everywhere: there is nothing to foresee


@pytest.mark.parametrize("penalty", [0.0, 0.05, 1.0])
def test_the_mixture_is_the_least_on_the_simplex(penalty):
    laws = [Law(0.0, np.array([-1.0, 0.4, 0.2])), Law(0.3, np.array([0.5, -0.6, 0.1])), Law(-1.0, np.array([0.3, 0.2, 0.25]))]
    prior = np.array([0.2, 0.2, 0.6])
    steps = 200
    grid = np.array([(a, b, steps - a - b) for a, b in product(range(steps + 1), repeat=2) if a + b <= steps]) / steps
    safe = np.maximum(grid, 1e-12)
    values = np.mean([law(grid) for law in laws], axis=0) + penalty * (safe * np.log(safe / prior)).sum(1)
    found = best_mixture(laws, prior, penalty)
    assert found.sum() == pytest.approx(1) and found.min() >= 0
    assert found == pytest.approx(grid[values.argmin()], abs=1.5 / steps)
    if penalty == 1.0:
        assert np.abs(found - prior).max() < 0.25  # the penalty holds it near


def test_a_corner_where_it_is_the_least():
    assert best_mixture([Law(0.0, np.array([-3.0, 1.0, 1.0]))], np.full(3, 1 / 3), 0.0) == pytest.approx([1, 0, 0], abs=1e-6)


def test_what_is_refused():
    with pytest.raises(LawError, match="5 mixtures of 4 domains: a law has 5 numbers; give at least 6"):
        fit_law(drawn(5), np.ones(5))
    with pytest.raises(LawError, match="finite losses above 0"):
        fit_law(drawn(8), np.array([1.0] * 7 + [np.nan]))
