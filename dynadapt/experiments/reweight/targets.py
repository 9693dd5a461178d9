"""Target losses from a run at the data's own proportions: held-out curves, fitted and extrapolated (scaling_fit.py)."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from dynadapt.experiments.mixers import MIXERS
from dynadapt.experiments.scaling_fit import Prediction, ScalingFit, fit_targets
from dynadapt.runs.drawing import CYCLE, STYLE, panels, save
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import RunError, write_json


def fit_run(run: str | Path, tokens: float) -> dict:
    """Predicts every domain's held-out loss after `tokens` training tokens of all domains; writes targets.json and targets.png.

    RunError for a run whose weights moved, ScalingError (naming each domain, and why) for a curve that can't support it.
    """
    run = read_run(run)
    if run.config.get("kind") != "reweight":
        raise RunError(f"{run.path} is not a run of `dynadapt reweight train`")
    if MIXERS[run.config["mixer"]].cadence != "never":
        raise RunError(
            f"{run.path} ran with mixer {run.config['mixer']!r}, whose weights move; a fit needs static ones (--mixer proportional)"
        )
    lines = [line for line in run.metrics if line["kind"] == "evaluation" and line["total_tokens"]]
    domains = tuple(lines[0]["heldout"]) if lines else ()
    if not domains:
        raise RunError(f"{run.path} has no evaluation after training began")
    trained = [line["total_tokens"] for line in lines]
    fits = fit_targets({domain: (trained, [line["heldout"][domain] for line in lines]) for domain in domains}, tokens)
    found = {
        "run": run.name,
        "tokens": tokens,
        "target": {domain: prediction.loss for domain, (_, prediction) in fits.items()},
        "interval": {domain: [prediction.low, prediction.high] for domain, (_, prediction) in fits.items()},
        "residual": {domain: fit.residual for domain, (fit, _) in fits.items()},
        "form": {domain: fit.form for domain, (fit, _) in fits.items()},
        "backtest": {domain: fit.backtest for domain, (fit, _) in fits.items()},
        "fit": {domain: fit.to_dict() for domain, (fit, _) in fits.items()},
    }
    write_json(run.path / "targets.json", found)
    _draw(fits, run.path / "targets.png")
    return found


def _draw(fits: dict[str, tuple[ScalingFit, Prediction]], path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure, axis = panels(8.2, 5.0)
        for index, (domain, (fit, prediction)) in enumerate(fits.items()):
            colour = CYCLE[index % len(CYCLE)]
            grid = np.geomspace(fit.tokens[0], max(prediction.tokens, fit.tokens[-1]), 100)
            low, high = np.array([fit.interval(n) for n in grid]).T
            axis.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(grid, [fit.predict(n) for n in grid], color=colour, linewidth=1.5, label=f"{domain}: {prediction.loss:.3f}")
            axis.plot(fit.tokens, fit.losses, linestyle="", marker="o", color=colour, markersize=4)
        axis.set_xscale("log")
        axis.set(
            xlabel="training tokens",
            ylabel="held-out NLL (nats per token)",
            title="Held-out losses, fitted and extrapolated, with 90% intervals",
        )
        axis.legend(frameon=False)
        save(figure, path)
