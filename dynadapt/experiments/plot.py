"""Pictures of runs of `dynadapt eval`, drawn from their files alone: loss against FLOPs and seconds, loss over the stream; and
`plot_runs`, which draws runs of every kind."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dynadapt.runs.drawing import (
    COLOURS,
    CYCLE,
    STYLE,
    fitted,
    label_points,
    legend_below,
    log_axis,
    panels,
    save,
    say_nothing_here,
    token_axis,
)
from dynadapt.runs.kinds import kind_of
from dynadapt.runs.labels import MOST, labels_of, looks_of, plain_static, scored_the_same
from dynadapt.runs.metrics import Run, read_run
from dynadapt.runs.rundir import RunError, read_json
from dynadapt.runs.whole_files import finite_number, note

__all__ = ["COLOURS", "CYCLE", "STYLE", "label_points", "plot_cost", "plot_runs"]


def plot_runs(paths: list[str], out: str | None = None) -> list[Path]:
    """Draws the runs among these, each kind its own picture; returns the pictures' paths.

    All runs of `dynadapt eval` are drawn together (plot.png in their common directory), other runs each by itself, into its own
    directory. With `out`, a .png, .svg or .pdf, they go there: several beside it, as STEM-RUN.SUFFIX. What is no run, or has nothing to
    draw yet, is said and left out; RunError where nothing is left.
    """
    found, left = {}, []
    for path in map(Path, dict.fromkeys(os.path.normpath(path) for path in paths)):
        reason, run = _read(path)
        if run is None:
            left.append(reason)
        else:
            found.setdefault(run.kind, []).append(run)
    if not found:
        raise RunError("; ".join(left))
    for reason in left:
        note(f"{reason}; left out")
    others = [run for kind, runs in found.items() if kind != "eval" for run in runs]
    target, drawn = Path(out) if out else None, []
    if runs := found.get("eval"):
        common = Path(os.path.commonpath([run.path.parent for run in runs]))
        drawn.append(plot_evaluations(runs, target or common / "plot.png"))
    names = _file_names(others)
    for run in others:
        alone = len(others) == 1 and not drawn
        drawn += _draw_one(run, target if target is None or alone else target.with_stem(f"{target.stem}-{names[run.path]}"))
    return drawn


def _file_names(runs: list[Run]) -> dict[Path, str]:
    """A name a run, no two the same: with as many of the directories above it as that needs."""
    names = {run.path: run.path.name for run in runs}
    for depth in range(2, 2 + max((len(run.path.parts) for run in runs), default=0)):
        taken = list(names.values())
        names = {
            path: "-".join(part for part in path.parts[-depth:] if part not in ("/", "..")) if taken.count(name) > 1 else name
            for path, name in names.items()
        }
    return names


def _read(path: Path) -> tuple[str, Run | None]:
    """(why there is nothing to draw here, the run)."""
    if not path.is_dir():
        return f"{path} is a file" if path.exists() else f"{path}: no such run directory", None
    if not (path / "config.json").is_file():
        return f"{path} is no run (no config.json)", None
    try:
        if kind_of(read_json(path / "config.json")) is None:
            return f"{path} is no run (its config.json is another's)", None
        run = read_run(path)
    except RunError as error:
        return f"{path} is damaged ({error})", None
    if (
        run.kind in ("eval", "icl")
        and not run.metrics
        or run.kind == "reweight"
        and not any(line.get("kind") == "step" for line in run.metrics)
    ):
        return f"{path}: nothing scored yet, so nothing to draw", None
    if run.kind in ("diagnose", "advise") and run.summary is None:
        return f"{path} is not finished, so there is nothing to draw", None
    return "", run


def _draw_one(run: Run, out: Path | None) -> list[Path]:
    if run.kind == "reweight":
        from .reweight.plot import draw

        return [draw(run.path, out)]
    if run.kind == "icl":
        from .icl.plot import draw_run

        return draw_run(run, out)
    from .diagnose.figures import draw_summary

    return draw_summary(run.summary, out or run.path / "figures.png", apart=out is None)


def plot_evaluations(runs: list[Run], path: Path) -> Path:
    """One picture with three panels. Unfinished runs show in the last panel only.

    Runs that scored other tokens, or with another model, are drawn beside each other but not joined: no front, and a difference to the
    static run only where each has one on its own tokens.
    """
    if len(runs) > MOST:
        raise RunError(f"{len(runs)} runs: a picture can tell at most {MOST} apart; name fewer of them")
    labels, looks = labels_of(runs), looks_of(runs)
    same = {run.path: scored_the_same(run) for run in runs}
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(14.5, 4.4, columns=3)
        done = [i for i, run in enumerate(runs) if run.summary]
        for axis, key, label, title in (
            (axes[0], "flops_per_token", "FLOPs per token", "Loss against computation"),
            (axes[1], "seconds", "seconds", "Loss against time"),
        ):
            _cost_panel(axis, runs, looks, done, key, label, title, len({same[runs[i].path] for i in done}) <= 1)
        _stream_panel(axes[2], runs, looks, same)
        handles = [matplotlib.lines.Line2D([], [], markersize=7, **look) for look in looks]
        legend_below(figure, handles, labels, most_columns=3)
        return save(figure, path)


def plot_cost(runs: list[Run], path: Path, titles: dict[str, str]) -> Path:
    """Loss against FLOPs per token, each run labelled at its point; where there is no room, in a legend."""
    looks, labels = looks_of(runs), labels_of(runs, titles)
    with matplotlib.rc_context(STYLE):
        figure, axis = panels(8.2, 5.0)
        one = len({scored_the_same(run) for run in runs}) <= 1
        points = _cost_panel(axis, runs, looks, range(len(runs)), "flops_per_token", "FLOPs per token (log scale)", "", one)
        config, summary = runs[0].config, runs[0].summary
        text = ", ".join(Path(t.removeprefix("builtin:")).stem for t in config["text"])
        title = f"{Path(config['model']).name} on {text}: {summary['tokens']:,} tokens, segments of {config['segment']}"
        axis.set_title("title")  # which has its height; how wide it may be is known once it is laid out
        if points:
            low, high = axis.get_xlim()
            axis.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
        axis.margins(y=0.12)
        FigureCanvasAgg(figure).draw()
        axis.set_title(fitted(title, axis.bbox.width / figure.dpi, 11, "bold"))
        shown = list(points)
        unplaced = label_points(
            axis, list(points.values()), [fitted(labels[i], 2.6, 9.5) for i in shown], [looks[i]["color"] for i in shown], always=False
        )
        handles = [matplotlib.lines.Line2D([], [], markersize=7, **{**looks[shown[i]], "linestyle": ""}) for i in unplaced]
        legend_below(figure, handles, [labels[shown[i]] for i in unplaced])
        return save(figure, path)


def _cost_panel(axis, runs, looks, chosen, key: str, label: str, title: str, comparable: bool) -> dict[int, tuple[float, float]]:
    """Draws the points {run's index: (cost, nll)} that there are and returns them; the fronts too, where the runs are `comparable`."""
    points = {i: (runs[i].summary.get(key), runs[i].summary.get("nll")) for i in chosen}
    points = {i: point for i, point in points.items() if None not in map(finite_number, point) and point[0] > 0}
    axis.set_title(title)
    if not points:
        say_nothing_here(axis, "no finished run")
        return {}
    for learns, colour in ((False, COLOURS["none"]), (True, COLOURS["lora"])) if comparable else ():
        cheapest = front([point for i, point in points.items() if (runs[i].config["adapt"] != "none") == learns])
        axis.plot(*zip(*cheapest), color=colour, linewidth=1.2, alpha=0.35, zorder=1)
    for i, (cost, nll) in points.items():
        axis.plot(
            cost,
            nll,
            linestyle="",
            marker=looks[i]["marker"],
            color=looks[i]["color"],
            markersize=9,
            markeredgecolor="white",
            markeredgewidth=1.2,
            zorder=3,
        )
    log_axis(axis, [cost for cost, _ in points.values()])
    axis.set(xlabel=label, ylabel="NLL (nats per token)" if comparable else "NLL (nats per token), not of the same tokens")
    axis.margins(y=0.1)
    return points


def front(points) -> list[tuple[float, float]]:
    """The points that no cheaper one beats, by cost."""
    best = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best or [(np.nan, np.nan)]


def _stream_panel(axis, runs, looks, same: dict[Path, str]) -> None:
    """Mean loss so far; less that of the plain static run with the shortest segments, where all have one on their own tokens."""
    curves = [np.array([(line["total_tokens"], line["total_nll"]) for line in run.metrics], float).T for run in runs]  # [2, lines]
    bases = []
    for run in runs:
        static = plain_static([other for other in runs if same[other.path] == same[run.path]])
        bases.append(None if static is None else curves[runs.index(static)])
    less = [None if base is None else _less(curve, base) for curve, base in zip(curves, bases)]
    relative = all(curve is not None and curve.shape[1] for curve in less)
    for curve, look in zip(less if relative else curves, looks):
        axis.plot(
            *curve,
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=1.8,
            marker=look["marker"],
            markersize=5,
            markevery=[curve.shape[1] - 1],
        )
    token_axis(axis)
    axis.set(
        xlabel="tokens scored",
        ylabel="difference of the mean NLL so far" if relative else "mean NLL so far (nats per token)",
        title="Over the stream, less static" if relative else "Over the stream",
    )


def _less(curve: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Where the base was scored too."""
    inside = (curve[0] >= base[0][0]) & (curve[0] <= base[0][-1])
    return np.stack([curve[0][inside], curve[1][inside] - np.interp(curve[0][inside], *base)])
