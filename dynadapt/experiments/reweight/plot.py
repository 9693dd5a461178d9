"""The picture of a run, drawn from its files alone: weights, training losses and held-out losses over tokens."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from dynadapt.experiments.metrics import read_run
from dynadapt.experiments.plot import CYCLE, STYLE, _save
from dynadapt.experiments.rundir import RunError

SMOOTH = 20  # points that a training loss is averaged over, at most


def draw(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes `out` (default: weights.png in the run's directory) and returns its path."""
    run = read_run(run)
    steps = [line for line in run.metrics if line.get("kind") == "step"]
    evaluations = [line for line in run.metrics if line.get("kind") == "evaluation"]
    if run.config.get("kind") != "reweight" or not steps:
        ours = run.config.get("kind") == "reweight"
        raise RunError(f"{run.path}: " + ("no step was made yet" if ours else "not a run of `dynadapt reweight train`"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14.5, 4.6), layout="constrained")
        axes = figure.subplots(1, 3)
        handles = []
        for index, domain in enumerate(steps[0]["weights"]):
            colour = CYCLE[index % len(CYCLE)]
            handles += axes[0].step(*_weights(steps, domain), where="pre", color=colour, linewidth=1.8, label=domain)
            axes[1].plot(*_training(steps, domain), color=colour, linewidth=1.4)
            axes[2].plot([line["total_tokens"] for line in evaluations], [line["heldout"][domain] for line in evaluations],
                         color=colour, linewidth=1.6, marker="o", markersize=4)
        largest = max(max(line["weights"].values()) for line in steps)
        axes[0].set(ylabel="weight", title=f"Weights: {run.config['mixer']}", ylim=(0, 1.05 * largest))
        axes[1].set(ylabel="NLL (nats per token)", title="Training loss, before each update")
        axes[2].set(ylabel="NLL (nats per token)", title="Held-out loss")
        for axis in axes:
            axis.set_xlabel("training tokens")
            axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False)
        path = Path(out) if out else run.path / "weights.png"
        _save(figure, path)
    return path


def _weights(steps: list[dict], domain: str):
    """The weight in force while each step's tokens were drawn."""
    weights = [line["weights"][domain] for line in steps]
    return [0] + [line["total_tokens"] for line in steps], [weights[0], *weights]


def _training(steps: list[dict], domain: str):
    """Running mean over the steps that had this domain."""
    points = [(line["total_tokens"], line["losses"][domain]) for line in steps if domain in line["losses"]]
    if not points:
        return [], []
    tokens, losses = map(np.array, zip(*points))
    width = min(SMOOTH, max(1, len(losses) // 5))
    return tokens[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid")
