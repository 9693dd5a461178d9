"""Regression over proxies: each drawn mixture is trained on by a small run, whose held-out losses are what the laws are fitted to.

A proxy is a run like any other, under proxies/NNN of the search's directory, with the weights of its mixture held still: of a smaller model
(--proxy, from random weights), or of the same one for fewer steps. All have the seed of the run that the mixture is for, so that they share initial
weights and held-out rows; the recipe leaves that open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dynadapt.runs.rundir import RunDirectory, RunError

from .config import ReweightConfig
from .domains import Domain
from .search_config import SearchConfig
from .training import ReweightOptions, run


def measure(
    config: ReweightConfig,
    how: SearchConfig,
    directory: RunDirectory,
    model,
    domains: Sequence[Domain],
    mixtures: np.ndarray,
    prior: np.ndarray,
    checkpoint: int,
    stop,
    progress: Callable[[dict], None],
) -> dict:
    """{"mixtures", "losses" [N, K], "flops"} of all mixtures [N, K]. Interrupted between two steps of a proxy."""
    names, losses, flops = [domain.name for domain in domains], [], {"proxies": 0, "heldout": 0}
    for index, mixture in enumerate(mixtures):
        if stop.signal:
            raise stop.reason(f"after proxy {index} of {len(mixtures)}")
        summary = run(
            proxy_config(config, how, dict(zip(names, mixture.tolist()))),
            directory.path / "proxies" / f"{index:03d}",
            ReweightOptions(resume=True, checkpoint=checkpoint),
            lambda line: None,
        )
        if summary["steps"] < how.steps(config):
            raise RunError(
                f"proxy {index}: {summary['ended']} after step {summary['steps']}; give a smaller --part, more text, or --policy repeat"
            )
        losses.append([summary["heldout"][name] for name in names])
        flops["heldout"] += summary["flops"]["heldout"]
        flops["proxies"] += sum(value for phase, value in summary["flops"].items() if phase != "heldout")
        stop.tell(progress, {"kind": "mixture", "mixture": index, "heldout": summary["heldout"]})
    return {"mixtures": mixtures.tolist(), "losses": losses, "flops": flops}


def proxy_config(config: ReweightConfig, how: SearchConfig, weights: dict[str, float]) -> ReweightConfig:
    """The run of one proxy: held-out losses at its start and its end alone."""
    steps = how.steps(config)
    return replace(
        config,
        mixer="fixed",
        weights=weights,
        steps=steps,
        evaluate=steps,
        warmup=min(config.warmup, steps // 10),
        scratch=how.proxy or config.scratch,
    )
