"""What a comparison of `benchmarks/reweighting.py` takes on this machine: some steps of it are made and timed, and the rest is arithmetic.

A seed of the eight methods of a size is as many runs as docs/reweight.md adds up, at equal tokens, and more with the stratified run that equal FLOPs need.
The small models of `proxies` are timed, too: they have a fraction of the FLOPs and nothing like that fraction of the time.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reweighting_study import Case
from benchmarks.script import write_results
from dynadapt.bench.quantiles import quantiles
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, run
from dynadapt.runs.progress import clock

RUNS_A_SEED = 9.2  # eight methods, the sample and the probes
# The stratified run of equal FLOPs, at most: velocitune-average takes its own, velocitune's, the proportional run and the sample.
LONGER = 3.5
WARM = 0.25  # of the timed steps, left out: the first ones are slower


def timed(case: Case, steps: int, out: Path) -> dict:
    """Seconds of a step by their quantiles, of the model and of a proxy, FLOPs of one as the ledger counts them, and what a run and a seed would take;
    written to out/time."""
    folder, config = out / "time", case.config
    shutil.rmtree(folder, ignore_errors=True)
    found, flops = _steps(config, steps, folder)
    small, _ = _steps(replace(config, scratch=case.proxy_size), steps, folder)
    a_run = config.steps * found["median"]
    proxies = case.mixtures * case.proxy * small["median"] / found["median"]
    runs = {"equal tokens": RUNS_A_SEED + proxies, "equal FLOPs too": RUNS_A_SEED + proxies + LONGER}
    whole = runs["equal FLOPs too"] * a_run / 3600
    results = {
        "settings": {name: getattr(config, name) for name in ("scratch", "rows", "segment", "steps", "adapt", "dtype")},
        "threads": torch.get_num_threads(),
        "steps_timed": steps,
        "step_seconds": found,
        "proxy": {"size": case.proxy_size, "models": case.mixtures, "steps": round(case.proxy * config.steps), "step_seconds": small},
        "flops_a_step": flops,
        "flops_a_second": flops / found["median"],
        "run_hours": a_run / 3600,
        "runs_a_seed": {"proxies": proxies, **runs},
        "seed_hours": {name: count * a_run / 3600 for name, count in runs.items()},
        "three_seeds": {"hours": 3 * whole, "days": 3 * whole / 24},
    }
    write_results(folder, results, page(results))
    return results


def _steps(config: ReweightConfig, steps: int, folder: Path) -> tuple[dict, int]:
    """(quantiles of the seconds of a step, FLOPs of one), from a run that is made here and left nowhere."""
    run(_short(config, steps), folder / "run", ReweightOptions(checkpoint=0))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder / "run")
    made = [line for line in lines if line["kind"] == "step"]
    return quantiles([line["seconds"] for line in made[int(WARM * len(made)) :]]), sum(made[-1]["flops"].values())


def _short(config: ReweightConfig, steps: int) -> ReweightConfig:
    """Stratified sampling for so many steps; held-out losses, which runs read rarely, at both ends alone."""
    return replace(
        config, mixer="stratified", settings={}, weights="uniform", steps=steps, evaluate=steps, warmup=min(config.warmup, steps)
    )


def page(results: dict) -> str:
    settings, step = results["settings"], results["step_seconds"]
    proxy, runs = results["proxy"], results["runs_a_seed"]
    lines = [
        f"{settings['scratch']}, {settings['rows']} rows of {settings['segment']} tokens, {results['threads']} threads: "
        f"{step['median']:.3f} s a step (20% to 80%: {step['p20']:.3f} to {step['p80']:.3f}), {results['flops_a_second'] / 1e12:.2f}e12 FLOPs a second",
        f"a run of {settings['steps']:,} steps: {clock(3600 * results['run_hours'])}",
        f"{proxy['models']} proxies of {proxy['size']}, {proxy['step_seconds']['median']:.3f} s a step: {runs['proxies']:.1f} runs",
        *(f"a seed of eight methods, {name}: {clock(3600 * hours)}" for name, hours in results["seed_hours"].items()),
    ]
    return "\n".join(lines) + "\n"
