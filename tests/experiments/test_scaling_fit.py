"""The scaling-law fit on curves whose law is known, and what it refuses."""

import json

import numpy as np
import pytest

from dynadapt.experiments.scaling_fit import ScalingError, ScalingFit, fit_curve, fit_targets

TOKENS = np.geomspace(1e5, 5e6, 12)


def curve(irreducible, b, beta, noise=0.0, seed=0, tokens=TOKENS):
    return irreducible + b / tokens**beta + noise * np.random.default_rng(seed).standard_normal(len(tokens))


@pytest.mark.parametrize("law", [(2.0, 30.0, 0.3), (0.0, 8.0, 0.1), (1.2, 4000.0, 0.8), (3.0, 3.0, 0.15)])
def test_a_clean_curve_gives_back_its_law(law):
    fit = fit_curve(TOKENS, curve(*law), draws=3)
    assert (fit.irreducible, fit.amplitude * fit.scale**fit.exponent, fit.exponent) == pytest.approx(law, rel=2e-2, abs=5e-3)
    assert fit.residual < 1e-6
    assert fit.extrapolate(5e7).loss == pytest.approx(law[0] + law[1] / 5e7 ** law[2], abs=1e-4)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    law, at = (2.0, 60.0, 0.35), 2e7
    truth, held, widths, residuals = law[0] + law[1] / at ** law[2], 0, [], []
    for seed in range(30):
        fit = fit_curve(TOKENS, curve(*law, noise=0.004, seed=seed), draws=60)
        low, high = fit.interval(at)
        held += low <= truth <= high
        widths.append(high - low)
        residuals.append(fit.residual)
    assert 20 <= held <= 30  # 27 expected of 30 at 90%
    assert np.mean(np.square(residuals)) == pytest.approx(0.004**2 * 9 / 12, rel=0.3)  # three of twelve degrees are the law's
    wide = fit_curve(TOKENS, curve(*law, noise=0.016), draws=60).interval(at)
    assert wide[1] - wide[0] > 2 * np.median(widths)


def test_a_fit_is_reproducible_and_survives_json():
    losses = curve(2.0, 60.0, 0.35, noise=0.004)
    fit = fit_curve(TOKENS, losses, draws=20)
    assert fit == fit_curve(TOKENS, losses, draws=20)
    assert ScalingFit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit


@pytest.mark.parametrize(
    "tokens, losses, message",
    [
        (TOKENS[:5], curve(2, 60, 0.35)[:5], "5 evaluations; at least 6"),
        (TOKENS, curve(2, 60, 0.35)[:-1], "12 token counts and 11 losses"),
        (np.arange(0, 6e6, 5e5), curve(2, 60, 0.35), "start above 0"),
        (TOKENS[::-1], curve(2, 60, 0.35), "must grow"),
        (np.linspace(2e6, 5e6, 12), curve(2, 60, 0.35), "at least 4 times the first"),
        (TOKENS, np.where(TOKENS > 1e6, np.nan, 3.0), "must be finite"),
    ],
)
def test_points_that_give_no_fit_are_refused(tokens, losses, message):
    with pytest.raises(ScalingError, match=message):
        fit_curve(tokens, losses)


def test_an_extrapolation_that_the_curve_cannot_support_is_refused():
    good = fit_curve(TOKENS, curve(2, 60, 0.35, noise=1e-3), draws=40)
    assert good.extrapolate(1e8).low < good.predict(1e8) < good.extrapolate(1e8).high
    with pytest.raises(ScalingError, match="200 times the 5,000,000 that were trained on"):
        good.extrapolate(1e9)
    with pytest.raises(ScalingError, match="tokens 0"):
        good.extrapolate(0)
    noise = np.random.default_rng(1).standard_normal(12)
    with pytest.raises(ScalingError, match="no trend to extend"):
        fit_curve(TOKENS, 3.0 + 0.01 * noise, draws=5).extrapolate(1e7)
    with pytest.raises(ScalingError, match="no trend to extend"):  # a loss that rises
        fit_curve(TOKENS, 3.0 + 1e-8 * TOKENS, draws=5).extrapolate(1e7)
    with pytest.raises(ScalingError, match="at its bound"):  # a line in log D: falls on and on
        fit_curve(TOKENS, 3 - 0.01 * np.log(TOKENS / 1e5), draws=5).extrapolate(1e7)
    with pytest.raises(ScalingError, match="wider than 50% of"):
        fit_curve(TOKENS[:7], curve(2, 60, 0.35, noise=0.05)[:7], draws=60).extrapolate(2e7)


def test_targets_name_every_domain_that_refuses():
    good = TOKENS, curve(2.0, 60.0, 0.35, noise=1e-3)
    found = fit_targets({"code": good, "prose": good}, 2e7)
    assert found["code"][1].loss == pytest.approx(2.0 + 60 / 2e7**0.35, abs=0.01)
    with pytest.raises(ScalingError, match="domain 'flat': .*no trend.*; domain 'short': 3 evaluations"):
        fit_targets({"code": good, "flat": (TOKENS, 3.0 + 1e-8 * TOKENS), "short": (TOKENS[:3], good[1][:3])}, 2e7)
