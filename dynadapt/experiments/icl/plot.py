"""The pictures of a run of `dynadapt icl train`, from its files alone: training, errors by number of examples, and what `icl eval` found."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from dynadapt.runs.drawing import STYLE, save
from dynadapt.runs.metrics import Run
from dynadapt.runs.rundir import read_json

from .eval_command import training_curve
from .figures import figures_of, grid_figure, looks_of, training_figure


def draw_run(run: Run, out: Path | None = None) -> list[Path]:
    """Writes figures/training.png, figures/errors.png (of a finished run) and, where the run has an eval.json, figures/eval/*.png; with
    `out`, OUT's name with -training, -errors and so on."""
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(run):
            drawn.append(
                save(figure, out.with_stem(f"{out.stem}-{name.replace('/', '-')}") if out else run.path / "figures" / f"{name}.png")
            )
    return drawn


def _figures(run: Run):
    subjects = {run.path.resolve().name: {"training": training_curve(run.metrics)}}
    yield "training", training_figure(subjects, looks_of({"subjects": subjects}))
    if run.summary:
        entries = {case: {"curves": curves, "excess": ["model"]} for case, curves in run.summary["errors"].items()}
        yield "errors", grid_figure(entries, looks_of({"subjects": {"model": {}}}), {case: case for case in entries})
    if (run.path / "eval.json").exists():
        for figure_name, figure in figures_of(read_json(run.path / "eval.json")):
            yield f"eval/{figure_name}", figure
