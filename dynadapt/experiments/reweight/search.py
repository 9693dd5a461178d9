"""A mixture to train on, from losses that were measured on others: OP-Mix, or regression over proxies.

1. Mixtures are drawn around the run's initial weights.
2. Each one's held-out losses are measured: with the domains' probes interpolated (probes.py), or by a small run of its own (proxies.py).
3. A log-linear law is fitted to each domain's losses, and held against their mean on mixtures that it did not see (mixture_law.py).
4. The mixture with the least mean loss by these laws is written to summary.json as "weights", which `--weights FILE` of a run with `--mixer fixed` reads.

OP-Mix (arXiv 2605.15220; michahu/op-mix@aa60707) measures on the model that is to be trained; regression over proxies, on small ones (RegMix,
Liu et al. 2024, arXiv 2407.01492; Olmix, arXiv 2602.12237, which replaces RegMix's boosted trees by this law). Everything that is computed on the way is counted:
"flops" of the summary has probes or proxies, their held-out losses, the merging, and the fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dynadapt.experiments.defaults import note_usual_rate, settled_dtype
from dynadapt.experiments.mixers.mixer import check_weights
from dynadapt.runs.rundir import RunDirectory, RunError
from dynadapt.runs.stopping import interruptible

from . import probes, proxies, setup
from .config import ReweightConfig
from .domains import domain_paths, read_domains
from .mixture_law import LawError, best_mixture, check, fit_law, foresee
from .search_config import DECIDING, SearchConfig

CLIPPED = 1e-4  # weight below which a drawn mixture leaves a domain out


def search_mixture(
    config: ReweightConfig,
    how: SearchConfig,
    out: str | Path,
    resume: bool = False,
    checkpoint: int = 50,
    progress: Callable[[dict], None] | None = None,
) -> dict:
    """Looks for the mixture of the run that `config` describes (its mixer aside), or goes on to the end; returns the summary.

    progress is called with each line of metrics.jsonl. Raises ConfigError, MixerError, CorpusError, LawError (a law that foresees nothing: what was
    measured is kept), RunError, Interrupted.
    """
    names = tuple(domain_paths(config))
    how.check_for(config, len(names))
    setup.check_mixer(replace(config, mixer="stratified", settings={}, target=None, reference=None), dict.fromkeys(names, 1))
    config = replace(config, mixer="stratified", settings={}, target=None, reference=None, dtype=settled_dtype(config, out, resume))
    directory = RunDirectory(out, how.to_dict(config), resume, False)
    try:
        if directory.finished:
            return _finished(directory, how)
        model = setup.load_model(config)
        note_usual_rate(config, model.config)
        domains = read_domains(config, model)
        if tuple(domain.name for domain in domains) != names:
            raise RunError(f"domains {', '.join(names)}: their files changed while they were read")
        texts = {f"the text of domain {domain.name!r}": domain.digest() for domain in domains}
        directory.expect({"the model": model.fingerprint(), "the tokenizer": model.tokenizer.fingerprint(), **texts})
        directory.begin(domains={name: path.name for name, path in domain_paths(config).items()})
        prior = np.array(list(setup.initial_weights(config, {domain.name: len(domain.train) for domain in domains}).values()))
        measure = {"op-mix": probes.measure, "proxies": proxies.measure}[how.method]
        with interruptible() as stop:
            measured = measure(
                config, how, directory, model, domains, drawn(how, prior, config.seed), prior, checkpoint, stop, progress or _ignore
            )
        return directory.finish(_summary(how, names, prior, measured, config.seed))
    finally:
        directory.close()


def _finished(directory: RunDirectory, how: SearchConfig) -> dict:
    """What was found; RunError where it was decided otherwise from the same losses."""
    for name in DECIDING:
        if directory.finished[name] != getattr(how, name):
            raise RunError(
                f"{directory.path} is finished, with {name} {directory.finished[name]!r}; remove its summary.json to decide anew from what was measured, "
                "or choose another --out"
            )
    return directory.finished


def _ignore(line: dict) -> None:
    pass


def drawn(how: SearchConfig, prior: np.ndarray, seed: int) -> np.ndarray:
    """[mixtures, K]: the first is the prior itself, the others are of a Dirichlet distribution whose mean it is."""
    prior = prior / prior.sum()
    random = np.random.default_rng([seed, 11])
    found = random.dirichlet(np.maximum(how.spread * len(prior) * prior, 1e-3), how.mixtures - 1)
    found = np.where(found < CLIPPED, 0.0, found)
    return np.vstack([prior, found / found.sum(1, keepdims=True)])


def _summary(how: SearchConfig, names: tuple[str, ...], prior: np.ndarray, measured: dict, seed: int) -> dict:
    """measured: mixtures [N, K] as data, losses [N, K], and flops by what they were spent on."""
    mixtures, losses = np.array(measured["mixtures"]), np.array(measured["losses"])
    foresight = {name: foresee(mixtures, losses[:, index], seed) for index, name in enumerate(names)}
    held = check(foresight, how.unforeseen == "hold")
    laws = {name: fit_law(mixtures, losses[:, index], seed) for index, name in enumerate(names)}
    weights = best_mixture([law for name, law in laws.items() if name not in held], prior, how.penalty)
    check_weights("found weights", names, dict(zip(names, weights.tolist())))
    at = lambda mixture: {  # noqa: E731
        name: float(losses[:, index].mean() if name in held else laws[name](mixture[None])[0]) for index, name in enumerate(names)
    }
    fits = sum(law.flops for law in laws.values()) + sum(value.flops for value in foresight.values())
    return {
        "method": how.method,
        **{name: getattr(how, name) for name in DECIDING},
        "weights": dict(zip(names, weights.tolist())),
        "prior": dict(zip(names, prior.tolist())),
        "predicted": at(weights),
        "predicted_of_prior": at(prior),
        "error": {name: value.error for name, value in foresight.items()},
        "error_of_mean": {name: value.error_of_mean for name, value in foresight.items()},
        "held": list(held),
        "laws": {name: {"log_asymptote": law.log_asymptote, "slopes": law.slopes.tolist()} for name, law in laws.items()},
        "mixtures": mixtures.tolist(),
        "losses": losses.tolist(),
        "flops": {**measured["flops"], "fit": fits},
    }


__all__ = ["LawError", "SearchConfig", "drawn", "search_mixture"]
