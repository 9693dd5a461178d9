"""What a comparison of `benchmarks/reweighting.py` takes on this machine: some steps of it are made and timed, and the rest is arithmetic.

A seed of the eight methods of a size is as many runs as docs/reweight.md adds up, at equal tokens, and more with the stratified run that equal FLOPs need.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.script import write_results
from dynadapt.bench.quantiles import quantiles
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, run
from dynadapt.runs.progress import clock

RUNS_A_SEED = {"equal tokens": 9.7, "equal FLOPs too": 12.2}
WARM = 0.25  # of the timed steps, left out: the first ones are slower


def timed(config: ReweightConfig, steps: int, out: Path) -> dict:
    """Seconds of a step by their quantiles, FLOPs of one as the ledger counts them, and what a run and a seed would take; written to out/time."""
    folder = out / "time"
    shutil.rmtree(folder, ignore_errors=True)
    run(_short(config, steps), folder / "run", ReweightOptions(checkpoint=0))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    made = [line for line in lines if line["kind"] == "step"]
    found = quantiles([line["seconds"] for line in made[int(WARM * len(made)) :]])
    a_run, flops = config.steps * found["median"], sum(made[-1]["flops"].values())
    whole = RUNS_A_SEED["equal FLOPs too"] * a_run / 3600
    results = {
        "settings": {name: getattr(config, name) for name in ("scratch", "rows", "segment", "steps", "adapt", "dtype")},
        "threads": torch.get_num_threads(),
        "steps_timed": len(made),
        "step_seconds": found,
        "flops_a_step": flops,
        "flops_a_second": flops / found["median"],
        "run_hours": a_run / 3600,
        "seed_hours": {name: runs * a_run / 3600 for name, runs in RUNS_A_SEED.items()},
        "three_seeds": {"hours": 3 * whole, "days": 3 * whole / 24},
    }
    shutil.rmtree(folder / "run")
    write_results(folder, results, page(results))
    return results


def _short(config: ReweightConfig, steps: int) -> ReweightConfig:
    """Stratified sampling for so many steps; held-out losses, which runs read rarely, at both ends alone."""
    return replace(
        config, mixer="stratified", settings={}, weights="uniform", steps=steps, evaluate=steps, warmup=min(config.warmup, steps)
    )


def page(results: dict) -> str:
    settings, step = results["settings"], results["step_seconds"]
    lines = [
        f"{settings['scratch']}, {settings['rows']} rows of {settings['segment']} tokens, {results['threads']} threads: "
        f"{step['median']:.3f} s a step (20% to 80%: {step['p20']:.3f} to {step['p80']:.3f}), {results['flops_a_second'] / 1e12:.2f}e12 FLOPs a second",
        f"a run of {settings['steps']:,} steps: {clock(3600 * results['run_hours'])}",
        *(f"a seed of eight methods, {name}: {clock(3600 * hours)}" for name, hours in results["seed_hours"].items()),
    ]
    return "\n".join(lines) + "\n"
