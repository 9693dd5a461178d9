"""The picture of a run, drawn from its files alone: weights, training losses and held-out losses over tokens."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from dynadapt.runs.drawing import CYCLE, STYLE, legend_below, panels, save, token_axis
from dynadapt.runs.labels import LINES
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import RunError

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
        figure, axes = panels(14.5, 4.4, columns=3)
        handles = []
        for index, domain in enumerate(steps[0]["weights"]):
            colour = CYCLE[index % len(CYCLE)]
            line = LINES[index // len(CYCLE) % len(LINES)]
            handles += axes[0].step(*_weights(steps, domain), where="pre", color=colour, linestyle=line, linewidth=1.8)
            training = _training(steps, domain)
            axes[1].plot(
                *training, color=colour, linestyle=line, linewidth=1.4, marker="o" if len(training[0]) == 1 else None, markersize=4
            )
            axes[2].plot(
                [line["total_tokens"] for line in evaluations],
                [line["heldout"][domain] for line in evaluations],
                color=colour,
                linestyle=line,
                linewidth=1.6,
                marker="o",
                markersize=4,
            )
        largest = max(max(line["weights"].values()) for line in steps)
        axes[0].set(ylabel="weight", title=f"Weights: {run.config['mixer']}", ylim=(0, 1.05 * largest))
        axes[1].set(ylabel="NLL (nats per token)", title="Training loss, before each update")
        axes[2].set(ylabel="NLL (nats per token)", title="Held-out loss")
        for axis in axes:
            axis.set_xlabel("training tokens")
            token_axis(axis)
        legend_below(figure, handles, list(steps[0]["weights"]))
        return save(figure, Path(out) if out else run.path / "weights.png")


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
