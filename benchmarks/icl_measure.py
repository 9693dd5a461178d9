"""What benchmarks/icl.py measures of trained models: mean errors by number of examples on each half of the test prompts, for the rules of
icl_rules.py. Prompts and baselines are float64; every seed has test prompts of its own."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch

from dynadapt.experiments.icl import DenseLinear, FunctionClass, Inputs, SparseLinear, UnitVariance, least_squares, linear_mixture
from dynadapt.experiments.icl.applicable_baselines import baselines_for, in_own_units, mixture_posterior
from dynadapt.experiments.icl.combine import ConvexCombination, Mixture
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.icl.evaluate import Predict, squared_errors
from dynadapt.experiments.icl.noise_free import noise_free_bayes
from dynadapt.experiments.icl.periodic import Sinusoid
from dynadapt.experiments.icl.train import load_run
from dynadapt.experiments.icl.unit_variance import own_units

PROMPTS = 2560  # of every test: twice what Garg et al. take
TESTED, VALIDATED = 1000, 2000  # added to a run's seed: the seed of the test prompts, and of the validation prompts
NOISE = 1e-6  # that stands for none where posteriors are not in closed form; what it changes is measured
FEW = 50  # sets of coordinates up to which the closed form without noise is used: it takes 16 times as long for 2 of 20
KEPT = 5  # fifths of a training whose weights are kept
SHOWN = ("least_squares", "lasso", "sparse_bayes", "basis_least_squares", "mixture_bayes")


def answers_of(run: Path, device: str, step: int | None = None) -> Predict:
    regressor = load_run(run, step, device=device)
    return lambda x, y, query=None: regressor.predict(x.float(), y.float()).to(y.dtype)


def means(predictors: dict[str, Predict], kind: FunctionClass, points: int, seed: int, prompts: int, normaliser=None, inputs=None) -> dict:
    """{predictor: {"first", "second": [points]}}: mean normalised errors on each half of the prompts."""
    generator = torch.Generator().manual_seed(seed)
    errors = squared_errors(
        predictors, kind, points, generator, inputs=inputs, prompts=prompts, normaliser=normaliser, dtype=torch.float64, batch=640
    )
    half = prompts // 2
    return {name: {"first": rounded(part[:half].mean(0)), "second": rounded(part[half:].mean(0))} for name, part in errors.items()}


def rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def baselines_on(kind: FunctionClass, mixture: Mixture) -> dict[str, Predict]:
    """What the rules compare with on a class; "mixture_bayes_noise": the posterior of the mixture with NOISE, not by the closed form."""
    found = {name: predict for name, predict in baselines_for(kind).items() if name in SHOWN}
    own, divisor = own_units(kind)
    if "sparse_bayes" in found:
        found["sparse_bayes"] = in_own_units(_without_noise(kind.dims, nonzeros=(own.nonzeros,)), divisor)
    prior = mixture_posterior(mixture, kind)
    if isinstance(prior, partial) and prior.func is linear_mixture:
        noisy = partial(linear_mixture, **prior.keywords, noise=NOISE)
        return found | {"mixture_bayes": _without_noise(kind.dims, **prior.keywords), "mixture_bayes_noise": noisy}
    return found if prior is None else found | {"mixture_bayes": prior}


def _without_noise(dims: int, **settings) -> Predict:
    few = all(math.comb(dims, count) <= FEW for count in settings["nonzeros"])
    return partial(noise_free_bayes, **settings) if few else partial(linear_mixture, **settings, noise=NOISE)


def improved(config: TrainConfig, run: Path, prompts: int) -> float:
    """What the last fifth of a training took from the error on validation prompts of its classes: mean over prompt and classes."""
    earlier = {"before": config.steps // KEPT * (KEPT - 1), "after": config.steps}
    models = {name: answers_of(run, config.device, step) for name, step in earlier.items()}
    gained = 0.0
    kinds = list(config.classes_by_name().values())
    for kind in kinds:
        found = means(models, kind, config.points, VALIDATED + config.seed, prompts)
        before, after = (sum(found[name]["first"]) + sum(found[name]["second"]) for name in ("before", "after"))
        gained += (before - after) / (2 * config.points * len(kinds))
    return float(f"{gained:.6g}")


def measure_linear(configs: dict[str, TrainConfig], runs: dict[str, Path], prompts: int = PROMPTS) -> dict:
    """One seed of the linear family. configs, runs: "mixture", "dense", "sparse"."""
    config = configs["mixture"]
    mixture = config.kind()
    assert isinstance(mixture, Mixture)
    dense, sparse = mixture.classes
    models = {name: answers_of(run, config.device) for name, run in runs.items()}
    dims, points, nonzeros = config.dims, config.points, own_units(sparse)[0].nonzeros
    scaled = DenseLinear(dims, scale=3 / own_units(dense)[1])
    test = partial(means, points=points, seed=TESTED + config.seed, prompts=prompts)
    tests = {
        "dense": test(models | baselines_on(dense, mixture), dense),
        "sparse": test(models | baselines_on(sparse, mixture), sparse),
        "y three times": test(models | {"least_squares": least_squares}, scaled, normaliser=9 * dense.normaliser),
        "x three times": test(models | {"least_squares": least_squares}, dense, normaliser=9 * dense.normaliser, inputs=Inputs(scale=3.0)),
    }
    for count in range(1, dims + 1):
        kind: FunctionClass = SparseLinear(dims, nonzeros=count)
        kind = UnitVariance(kind) if config.unit_variance else kind
        tests[f"nonzeros {count}"] = test(models | {"mixture_bayes": baselines_on(kind, mixture)["mixture_bayes"]}, kind)
    return {"seed": config.seed, "nonzeros": nonzeros, "tests": tests, "improved": _improved(configs, runs, prompts)}


def measure_number(configs: dict[str, TrainConfig], runs: dict[str, Path], prompts: int = PROMPTS) -> dict:
    """One seed of the family of functions of one number. configs, runs: "waves", "line", "wave"."""
    config = configs["waves"]
    mixture = config.kind()
    assert isinstance(mixture, Mixture)
    line, wave = mixture.classes
    models = {name: answers_of(run, config.device) for name, run in runs.items()}
    own = own_units(wave)[0]
    assert isinstance(own, Sinusoid)
    faster = UnitVariance(Sinusoid(1, amplitude=own.amplitude, frequency=(2 * own.frequency[0], 2 * own.frequency[1])))
    test = partial(means, points=config.points, seed=TESTED + config.seed, prompts=prompts)
    tests = {
        "line": test(models | baselines_on(line, mixture), line),
        "wave": test(models | baselines_on(wave, mixture), wave),
        "combined": test(models, ConvexCombination(line, wave, 0.5)),
        "faster": test(models | baselines_on(faster, mixture), faster),
    }
    return {"seed": config.seed, "tests": tests, "improved": _improved(configs, runs, prompts)}


def _improved(configs: dict[str, TrainConfig], runs: dict[str, Path], prompts: int) -> dict[str, float]:
    return {name: improved(config, runs[name], prompts) for name, config in configs.items()}


def moved(seeds: list[dict]) -> float:
    """How far mean errors of the mixture's posterior are from those with NOISE, computed another way: the most of all tests."""
    found = [
        abs(a - b)
        for seed in seeds
        for test in seed["tests"].values()
        if "mixture_bayes_noise" in test
        for half in ("first", "second")
        for a, b in zip(test["mixture_bayes"][half], test["mixture_bayes_noise"][half])
    ]
    return max(found, default=0.0)
