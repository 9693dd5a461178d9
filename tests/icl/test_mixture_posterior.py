"""Exact posteriors of mixtures against quadrature and enumeration, and classes of unit variance."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import seeded
from scipy.stats import multivariate_normal

from dynadapt.experiments import icl
from dynadapt.experiments.icl import DenseLinear, IclError, Mixture, Sinusoid, SparseLinear, UnitVariance, draw, make_function_class
from dynadapt.experiments.icl.applicable_baselines import baselines_for, mixture_posterior
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.icl.study import label

AMPLITUDE, FREQUENCY = (0.5, 2.0), 2.0
LINE, WAVE = DenseLinear(1), Sinusoid(1, amplitude=AMPLITUDE, frequency=(FREQUENCY, FREQUENCY))
MIXED = Mixture([UnitVariance(LINE), UnitVariance(WAVE)], (0.3, 0.7))
DIVISORS = (1.0, math.sqrt(5.25 / 6))


def quadrature(x, y, q, noise, weights=(0.3, 0.7)):
    """(answer, chance of the line) for one prompt whose examples have noise N(0, noise^2): the line in closed form, sinusoids on a grid of
    amplitudes and phases whose cells are far smaller than what the noise allows."""
    n = len(x)
    amplitudes = torch.linspace(*AMPLITUDE, round(8 / noise), dtype=torch.float64)
    phases = torch.arange(round(32 / noise), dtype=torch.float64) * (2 * math.pi / round(32 / noise))
    wave = lambda at: amplitudes[:, None] * torch.sin(FREQUENCY * at + phases) / DIVISORS[1]  # noqa: E731
    log = sum(-0.5 * ((y[i] - wave(x[i])) / noise) ** 2 for i in range(n)) - n * math.log(noise * math.sqrt(2 * math.pi))
    evidence = float(log.logsumexp((0, 1))) - math.log(log.numel())
    answer = float((log.flatten().softmax(0) * wave(q).flatten()).sum())
    cov = np.outer(x, x) + noise**2 * np.eye(n)
    joint = np.array([multivariate_normal.logpdf(y, np.zeros(n), cov), evidence]) + np.log(weights)
    chance = np.exp(joint - joint.max())
    chance /= chance.sum()
    return chance[0] * float(q * x @ np.linalg.solve(cov, y)) + chance[1] * answer, chance[0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_line_or_wave_against_quadrature_with_less_and_less_noise(k):
    """Examples at fixed places, so that no two of them are close; a line, three sinusoids."""
    x = torch.tensor([0.9, -0.5, 0.35, 1.3], dtype=torch.float64).repeat(4, 1)[:, :, None]
    lines = UnitVariance(LINE).values({"w": torch.tensor([[0.8]], dtype=torch.float64)}, x[:1])
    parameters = {key: torch.tensor(values, dtype=torch.float64)[:, None] for key, values in
                  {"amplitude": [0.7, 1.2, 1.9], "frequency": [2.0] * 3, "phase": [0.3, 2.0, 4.4]}.items()}  # fmt: skip
    y = torch.cat([lines, UnitVariance(WAVE).values(parameters, x[1:])])
    found, chances = icl.line_or_wave_posterior(x, y, amplitude=AMPLITUDE, frequency=FREQUENCY, weights=(0.3, 0.7), divisors=DIVISORS)
    apart = []
    for noise in (0.04, 0.02, 0.01):
        exact = [quadrature(x[b, :k, 0].numpy(), y[b, :k].numpy(), float(x[b, k, 0]), noise) for b in range(4)]
        apart.append(max(max(abs(float(found[b, k]) - a), abs(float(chances[b, k, 0]) - c)) for b, (a, c) in enumerate(exact)))
    assert apart[2] < 0.06 and apart[2] < 0.6 * apart[1] < 0.36 * apart[0], apart


def test_density_of_one_example_of_a_sinusoid():
    """Its histogram, and that it integrates to one."""
    from dynadapt.experiments.icl.line_wave import _wave_density

    kind = UnitVariance(WAVE)
    y = draw(kind, 400_000, 1, seeded(3), dtype=torch.float64).y[:, 0]
    edges = torch.linspace(-2.2, 2.2, 23, dtype=torch.float64)
    counts = torch.histogram(y, edges).hist / len(y)
    fine = torch.linspace(-2.2, 2.2, 220_001, dtype=torch.float64)
    density = _wave_density(fine, *AMPLITUDE, kind.divisor).exp()
    cells = torch.stack([part.sum() for part in density[:-1].view(22, -1)]) * float(fine[1] - fine[0])
    assert float(density.sum() * (fine[1] - fine[0])) == pytest.approx(1.0, abs=1e-4)
    assert float((counts - cells).abs().max()) < 4 * math.sqrt(0.1 / len(y))
    one = _wave_density(torch.tensor([0.3], dtype=torch.float64), 1.0, 1.0, 1.0).exp()
    assert float(one) == pytest.approx(1 / (math.pi * math.sqrt(1 - 0.09)))


def test_no_predictor_beats_the_posterior_of_lines_and_sinusoids():
    p = draw(MIXED, 4000, 6, seeded(5), dtype=torch.float64)
    best, chances = icl.line_or_wave_posterior(p.x, p.y, amplitude=AMPLITUDE, frequency=FREQUENCY, weights=(0.3, 0.7), divisors=DIVISORS)
    error = lambda answer: (answer - p.y).square().mean(0)  # noqa: E731
    for name, predict in (baselines_for(UnitVariance(WAVE)) | baselines_for(UnitVariance(LINE))).items():
        assert (error(best)[1:] <= error(predict(p.x, p.y))[1:] * 1.01 + 1e-9).all(), name
    assert float(error(best)[3:].max()) < 1e-6
    told = chances[:, 2:, 0].mean(1)
    assert ((told == 1) == (p.functions["chosen"] == 0)).all() and ((told == 0) | (told == 1)).all()
    # chances after one example are calibrated: of prompts whose line has chance c, a share c are lines
    chance, is_line = chances[:, 1, 0], (p.functions["chosen"] == 0).double()
    for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 1.01)):
        inside = (chance >= low) & (chance < high)
        assert abs(float((chance - is_line)[inside].mean())) < 4 * math.sqrt(0.25 / int(inside.sum()))


def test_line_or_wave_where_one_class_has_no_chance():
    p = draw(WAVE, 20, 5, seeded(1), dtype=torch.float64)
    settings = {"amplitude": AMPLITUDE, "frequency": FREQUENCY}
    alone = icl.line_or_wave(p.x, p.y, weights=(0.0, 1.0), **settings)
    expected = p.y[:, 0] * torch.cos(2 * (p.x[:, 1, 0] - p.x[:, 0, 0]))
    torch.testing.assert_close(alone[:, 1], expected)
    torch.testing.assert_close(
        icl.line_or_wave(p.x, p.y, weights=(1.0, 0.0), **settings), icl.least_squares(p.x, p.y), atol=1e-9, rtol=1e-9
    )


def test_linear_mixture_with_divisors_against_enumeration():
    prompts = draw(Mixture([UnitVariance(DenseLinear(3)), UnitVariance(SparseLinear(3, nonzeros=1))]), 4, 5, seeded(2), dtype=torch.float64)
    x, y = prompts.x, prompts.y
    found, chances = icl.linear_mixture_posterior(x, y, nonzeros=(3, 1), weights=(0.4, 0.6), noise=0.05, divisors=(math.sqrt(3), 1.0))
    hypotheses = [(0, (0, 1, 2), 0.4, 1 / 3), *((1, (i,), 0.6 / 3, 1.0) for i in range(3))]
    for b in range(4):
        for k in range(1, 5):
            joint, answer = np.zeros(2), 0.0
            for index, chosen, prior, variance in hypotheses:
                own, asked = x[b, :k, list(chosen)].numpy(), x[b, k, list(chosen)].numpy()
                covariance = variance * own @ own.T + 0.05**2 * np.eye(k)
                density = prior * multivariate_normal.pdf(y[b, :k].numpy(), np.zeros(k), covariance)
                joint[index] += density
                answer += density * (variance * asked @ own.T @ np.linalg.solve(covariance, y[b, :k].numpy()))
            assert float(found[b, k]) == pytest.approx(answer / joint.sum(), abs=1e-9)
            np.testing.assert_allclose(chances[b, k], joint / joint.sum(), atol=1e-9)


@pytest.mark.parametrize("nonzeros", [(3, 1), (1, 2), (2, 1)])
def test_the_posterior_without_noise_is_the_limit_of_enumeration_with_less_and_less(nonzeros):
    """Every set of coordinates by Bayes' rule with noise, in float64, for one prompt at a time: a tenth of the noise, a tenth of the distance."""
    divisors, weights = (1.5, 1.0), (0.4, 0.6)
    kind = UnitVariance(SparseLinear(3, nonzeros=min(nonzeros)))
    p = draw(kind, 5, 5, seeded(12), dtype=torch.float64)
    found, chances = icl.noise_free_mixture(p.x, p.y, nonzeros=nonzeros, weights=weights, divisors=divisors)
    apart = []
    for noise in (1e-2, 1e-3, 1e-4):
        worst = 0.0
        for b in range(5):
            for k in range(1, 5):
                x, y, q = p.x[b, :k].numpy(), p.y[b, :k].numpy(), p.x[b, k].numpy()
                logs, answers, classes = [], [], []
                for index, count in enumerate(nonzeros):
                    sets = list(combinations(range(3), count))
                    for chosen in map(list, sets):
                        covariance = x[:, chosen] @ x[:, chosen].T / divisors[index] ** 2 + noise**2 * np.eye(k)
                        logs.append(multivariate_normal.logpdf(y, np.zeros(k), covariance) + np.log(weights[index] / len(sets)))
                        answers.append(q[chosen] @ x[:, chosen].T @ np.linalg.solve(covariance, y) / divisors[index] ** 2)
                        classes.append(index)
                chance = np.exp(np.array(logs) - max(logs))
                chance /= chance.sum()
                first = chance[np.array(classes) == 0].sum()
                worst = max(worst, abs(float(found[b, k]) - chance @ answers), abs(float(chances[b, k, 0]) - first))
        apart.append(worst)
    assert apart[2] < 2e-3 and apart[2] < 0.2 * apart[1] < 0.04 * apart[0]


def test_no_examples_that_fit_no_class():
    p = draw(DenseLinear(3), 4, 5, seeded(1), dtype=torch.float64)
    with pytest.raises(IclError, match="the first 2 examples of a prompt fit none of the classes"):
        icl.noise_free_bayes(p.x, p.y, nonzeros=(1,))
    torch.testing.assert_close(icl.noise_free_bayes(p.x, p.y, nonzeros=(3,)), icl.least_squares(p.x, p.y), atol=1e-8, rtol=1e-8)
    with pytest.raises(IclError, match="x is torch.float32"):
        icl.noise_free_bayes(p.x.float(), p.y.float(), nonzeros=(3,))


def test_the_noise_free_limit_of_the_linear_mixture_is_reached():
    """Mean errors with a noise of 1e-6, one example after the other, are those of the closed form."""
    for kind in (UnitVariance(DenseLinear(3)), UnitVariance(SparseLinear(3, nonzeros=1))):
        p = draw(kind, 2000, 8, seeded(4), dtype=torch.float64)
        settings = {"nonzeros": (3, 1), "divisors": (math.sqrt(3), 1.0)}
        noisy = icl.linear_mixture(p.x, p.y, **settings, noise=1e-6)
        errors = [(answer - p.y).square().mean(0) for answer in (noisy, icl.noise_free_bayes(p.x, p.y, **settings))]
        assert float((errors[0] - errors[1]).abs().max()) < 1e-4 and float(errors[1][3 if kind.of.name == "linear" else 2 :].max()) < 1e-12


# ---- classes of unit variance


@pytest.mark.parametrize("of", [DenseLinear(5), SparseLinear(5, nonzeros=2), WAVE, make_function_class("noisy_linear", 5, noise=0.5)])
def test_unit_variance(of):
    kind = UnitVariance(of)
    p = draw(kind, 20_000, 4, seeded(7), dtype=torch.float64)
    extra = 1 + getattr(of, "noise", 0.0) ** 2 / of.normaliser
    assert float(p.y.square().mean()) == pytest.approx(extra, rel=0.05)
    raw = draw(of, 20_000, 4, seeded(7), dtype=torch.float64)
    torch.testing.assert_close(p.y * math.sqrt(of.normaliser), raw.y)
    again = make_function_class(**{"dims": of.dims, **kind.describe()})
    assert again.describe() == kind.describe() and label(kind).startswith("unit_variance:" + label(of))
    for name, predict in baselines_for(kind).items():  # the same predictors, in the class's own units
        own = baselines_for(of)[name](raw.x[:9], raw.y[:9])
        torch.testing.assert_close(predict(p.x[:9], p.y[:9]) * kind.divisor, own, atol=1e-9, rtol=1e-9)


def test_a_run_says_that_its_classes_have_unit_variance():
    config = TrainConfig(dims=4, classes=("dense-linear", "sparse-linear:1"), unit_variance=True)
    kind = config.kind()
    assert [part.name for part in kind.classes] == ["unit_variance"] * 2 and kind.normaliser == 1.0
    p = draw(kind, 40_000, 2, seeded(8))
    for index in (0, 1):
        assert float(p.y[p.functions["chosen"] == index].square().mean()) == pytest.approx(1.0, rel=0.06)
    assert TrainConfig.from_dict(config.to_dict()) == config
    old = {key: value for key, value in config.to_dict().items() if key != "unit_variance"}
    assert not TrainConfig.from_dict(old).unit_variance


def test_which_mixtures_have_a_posterior():
    assert mixture_posterior(MIXED, UnitVariance(WAVE)) is not None and mixture_posterior(MIXED) is not None
    assert mixture_posterior(MIXED, WAVE) is None  # not its class: in other units
    other = Sinusoid(1, amplitude=AMPLITUDE, frequency=(1.0, 2.0))
    assert mixture_posterior(Mixture([LINE, other])) is None and mixture_posterior(Mixture([WAVE, other])) is None
    turned = mixture_posterior(Mixture([WAVE, LINE], (0.7, 0.3)))
    assert turned.keywords["weights"] == [0.3, 0.7]
    linear = Mixture([UnitVariance(DenseLinear(4)), SparseLinear(4, nonzeros=1)])
    assert mixture_posterior(linear, DenseLinear(4)).keywords["divisors"] == (2.0, 1.0)
    assert "mixture_bayes" in baselines_for(UnitVariance(DenseLinear(4)), linear)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda x, y: UnitVariance(MIXED), "give the mixture's classes one by one"),
        (lambda x, y: UnitVariance(UnitVariance(LINE)), "not a function class in its own units"),
        (lambda x, y: UnitVariance(DenseLinear(2, scale=3.0)), "linear has scale 3"),
        (lambda x, y: make_function_class("unit_variance", 2), "setting 'of' is missing"),
        (lambda x, y: icl.line_or_wave(x, y, amplitude=AMPLITUDE, frequency=2.0), "x has 2 dimensions; give 1"),
        (lambda x, y: icl.line_or_wave(x[:, :, :1], y, amplitude=(0.0, 0.0), frequency=2.0), "every sinusoid would be zero"),
        (lambda x, y: icl.line_or_wave(x[:, :, :1], y, amplitude=AMPLITUDE, frequency=0.0), "frequency 0.0"),
        (lambda x, y: icl.line_or_wave(x[:, :, :1], y, amplitude=AMPLITUDE, frequency=2.0, weights=(0.5, 0.6)), "the weights chances"),
        (lambda x, y: icl.linear_mixture(x, y, nonzeros=(2, 1), divisors=(1.0,)), "2 classes and 1 divisors"),
        (lambda x, y: icl.linear_mixture(x, y, nonzeros=(2,), divisors=(0.0,)), "divisor 0.0"),
        (
            lambda x, y: icl.noise_free_bayes(x.double(), y.double(), nonzeros=(2, 1), divisors=(1.0,)),
            "2 classes, 2 weights and 1 divisors",
        ),
        (lambda x, y: icl.noise_free_bayes(torch.zeros(1, 2, 20).double(), torch.zeros(1, 2).double(), nonzeros=(10,)), "184756 sets"),
    ],
)
def test_refusals(build, message):
    x = torch.randn(2, 3, 2, generator=seeded())
    with pytest.raises(IclError, match=message):
        build(x, x[:, :, 0])
