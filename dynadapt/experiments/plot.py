"""Pictures of runs, drawn from their files alone: loss against FLOPs and seconds, loss over the stream."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynadapt.experiments.metrics import Run, read_run
from dynadapt.experiments.rundir import RunError, disk_error, read_json
from dynadapt.experiments.whole_files import note

COLOURS = {"none": "#6b7280", "lora": "#2563eb", "rows": "#d97706", "full": "#0f8a5f"}
CYCLE = ["#2563eb", "#d97706", "#0f8a5f", "#b91c6b", "#7c3aed", "#0891b2", "#a16207", "#dc2626", "#4b5563", "#65a30d"]
MARKERS = {"window": "o", "overlap": "^", "memory": "s", "long window": "D"}
DASHES = {"window": "-", "overlap": ":", "memory": "--", "long window": "-."}
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9ca3af", "axes.grid": True,
    "grid.color": "#e5e7eb", "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "xtick.color": "#4b5563", "ytick.color": "#4b5563", "axes.labelcolor": "#374151", "svg.hashsalt": "dynadapt",
}


def _remembers(config: dict) -> str:
    return "memory" if config["memory"] else "overlap" if config["context"] else "window"


def _describe(config: dict, varied: set[str]) -> str:
    """What learns and what remembers, then whatever else differs among the runs."""
    learns = {"none": "static", "lora": f"LoRA r{config['rank']}", "rows": f"{config['density']:.0%} of rows", "full": "full"}[config["adapt"]]
    parts = [learns]
    if config["memory"]:
        parts.append(f"memory {config['memory']}")
    if config["context"]:
        parts.append(f"overlap {config['context']}")
    said = {"adapt", "rank", "density", "memory", "context"}
    if config["adapt"] == "none":
        said |= {"lr", "optimizer", "every", "decay", "clip", "reset", "targets", "layers", "seed"}
    if not config["memory"]:
        said |= {"sinks", "refresh"}
    for key in sorted(varied - said):
        value = config[key]
        text = "+".join(Path(str(v).removeprefix("builtin:")).stem for v in value) if key == "text" else f"{value:g}" if isinstance(value, float) else value
        parts.append(f"{key} {text}")
    return ", ".join(parts)


def _labels(runs: list[Run], titles: dict[str, str] | None) -> list[str]:
    if titles:
        return [titles.get(run.name, run.name) for run in runs]
    varied = {key for key in runs[0].config for run in runs if run.config.get(key) != runs[0].config.get(key)}
    rates = {}                                       # a rate that follows from what learns is not worth saying
    for run in runs:
        rates.setdefault((run.config["adapt"], run.config["optimizer"]), set()).add(run.config["lr"])
    if all(len(values) == 1 for values in rates.values()):
        varied.discard("lr")
    labels = [_describe(run.config, varied) for run in runs]
    return [label if labels.count(label) == 1 else f"{label} ({run.name})" for label, run in zip(labels, runs)]


def _looks(runs: list[Run]) -> list[dict]:
    """Colour says what learns and marker what remembers, as long as that tells the runs apart; else a colour a run."""
    shortest = min(run.config["segment"] for run in runs)
    kinds = [(run.config["adapt"], "long window" if run.config["segment"] > shortest else _remembers(run.config)) for run in runs]
    distinct = len(set(kinds)) == len(kinds)
    return [{"color": COLOURS[adapt] if distinct else CYCLE[i % len(CYCLE)], "marker": MARKERS[remembers],
             "linestyle": DASHES[remembers] if distinct else "-"} for i, (adapt, remembers) in enumerate(kinds)]


def _runs_in(paths: list[Path]) -> list[Run]:
    """The runs of `dynadapt eval` among these. What else there is, is said and left out; RunError where nothing is left."""
    left = {path: _no_run(path) for path in paths}
    chosen = [path for path, reason in left.items() if reason is None]
    if not chosen:
        raise RunError("; ".join(left.values()))
    for reason in filter(None, left.values()):
        note(f"{reason}; left out")
    return [read_run(path) for path in chosen]


def _no_run(path: Path) -> str | None:
    """Why there is nothing to draw here; None for a run of `dynadapt eval`."""
    if not path.is_dir():
        return f"{path} is a file" if path.exists() else f"{path}: no such run directory"
    if not (path / "config.json").is_file():
        return f"{path} is no run (no config.json)"
    kind = read_json(path / "config.json").get("kind")
    if kind == "reweight":
        return f"{path} is a reweighting run: draw it with dynadapt reweight plot --out {path}"
    return f"{path} is a run of dynadapt {kind}" if kind else None


def plot_runs(paths: list[str], out: str | None = None) -> list[Path]:
    """One picture with three panels; returns its path. Unfinished runs show in the last panel only."""
    runs = _runs_in([Path(path) for path in dict.fromkeys(os.path.normpath(path) for path in paths)])
    runs = [run for run in runs if run.metrics]
    if not runs:
        raise RunError(f"{', '.join(paths)}: nothing scored yet, so nothing to draw")
    path = Path(out) if out else Path(os.path.commonpath([run.path.parent for run in runs])) / "plot.png"
    labels, looks = _labels(runs, None), _looks(runs)
    with matplotlib.rc_context(STYLE):
        rows = -(-len(runs) // 3)
        figure = Figure(figsize=(14.5, 4.4 + 0.22 * rows), layout="constrained")
        axes = figure.subplots(1, 3)
        done = [i for i, run in enumerate(runs) if run.summary]
        _cost_panel(axes[0], runs, looks, done, lambda s: s["flops_per_token"], "FLOPs per token", "Loss against computation")
        _cost_panel(axes[1], runs, looks, done, lambda s: s["seconds"], "seconds", "Loss against time")
        _stream_panel(axes[2], runs, looks)
        handles = [matplotlib.lines.Line2D([], [], markersize=7, label=label, **look) for label, look in zip(labels, looks)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(runs)), frameon=False)
        _save(figure, path)
    return [path]


def plot_cost(runs: list[Run], path: Path, titles: dict[str, str]) -> Path:
    """Loss against FLOPs per token, each run labelled at its point."""
    looks, labels = _looks(runs), _labels(runs, titles)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 5.0), layout="constrained")
        axis = figure.subplots()
        _cost_panel(axis, runs, looks, range(len(runs)), lambda s: s["flops_per_token"], "FLOPs per token (log scale)", "")
        config, summary = runs[0].config, runs[0].summary
        text = ", ".join(Path(t.removeprefix("builtin:")).stem for t in config["text"])
        axis.set_title(f"{Path(config['model']).name} on {text}: {summary['tokens']:,} tokens, segments of {config['segment']}")
        axis.margins(x=0.12, y=0.12)
        FigureCanvasAgg(figure).draw()
        label_points(axis, [(r.summary["flops_per_token"], r.summary["nll"]) for r in runs], labels, [look["color"] for look in looks])
        _save(figure, path)
    return path


def _cost_panel(axis, runs, looks, chosen, cost, label: str, title: str) -> None:
    for learns, colour in ((False, COLOURS["none"]), (True, COLOURS["lora"])):
        points = _front([(cost(runs[i].summary), runs[i].summary["nll"]) for i in chosen if (runs[i].config["adapt"] != "none") == learns])
        axis.plot(*zip(*points), color=colour, linewidth=1.2, alpha=0.35, zorder=1)
    for i in chosen:
        look = looks[i]
        axis.plot(cost(runs[i].summary), runs[i].summary["nll"], linestyle="", marker=look["marker"], color=look["color"], markersize=9,
                  markeredgecolor="white", markeredgewidth=1.2, zorder=3)
    axis.set_xscale("log")
    _plain_log_ticks(axis)
    axis.set(xlabel=label, ylabel="NLL (nats per token)", title=title)
    axis.margins(x=0.1, y=0.1)


def _front(points) -> list[tuple[float, float]]:
    """The points that no cheaper one beats, by cost."""
    front = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front or [(np.nan, np.nan)]


def _plain_log_ticks(axis) -> None:
    """Ticks at round numbers of each decade, or nearer when the range is small, with metric prefixes."""
    axis.autoscale_view()
    low, high = axis.get_xlim()
    subs = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 6, 8) if high / low > 2 else tuple(np.arange(10, 100, 2) / 10)
    axis.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=subs, numticks=12))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    axis.xaxis.set_minor_locator(ticker.NullLocator())


def _plain_static(runs: list[Run]) -> Run | None:
    statics = [run for run in runs if run.config["adapt"] == "none" and not run.config["memory"] and not run.config["context"]]
    return min(statics, key=lambda run: run.config["segment"], default=None)


def _stream_panel(axis, runs, looks) -> None:
    """Mean loss so far, less that of the plain static run with the shortest segments where there is one."""
    static = _plain_static(runs)
    base = None
    if static:
        base = [np.array(values) for values in zip(*[(line["total_tokens"], line["total_nll"]) for line in static.metrics])]
    for run, look in zip(runs, looks):
        tokens = np.array([line["total_tokens"] for line in run.metrics])
        nll = np.array([line["total_nll"] for line in run.metrics])
        if base is not None:
            inside = (tokens >= base[0][0]) & (tokens <= base[0][-1])
            tokens, nll = tokens[inside], nll[inside] - np.interp(tokens[inside], *base)
        axis.plot(tokens, nll, color=look["color"], linestyle=look["linestyle"], linewidth=1.8,
                  marker=look["marker"] if len(tokens) == 1 else None)
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.set(xlabel="tokens scored", ylabel="difference of the mean NLL so far" if base else "mean NLL so far (nats per token)",
             title="Over the stream, less static" if base else "Over the stream")


def label_points(axis, points, labels, colours) -> None:
    """Each label beside its point, on the first side where it covers neither a point nor another label."""
    figure = axis.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axis.get_window_extent(renderer)
    taken = [matplotlib.transforms.Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axis.transData.transform(points)]
    places = [(11, 0, "left", "center"), (-11, 0, "right", "center"), (0, 11, "center", "bottom"), (0, -11, "center", "top"),
              (9, 10, "left", "bottom"), (-9, 10, "right", "bottom"), (9, -10, "left", "top"), (-9, -10, "right", "top"),
              (9, 22, "left", "bottom"), (9, -22, "left", "top")]
    for point, label, colour in zip(points, labels, colours):
        for dx, dy, horizontal, vertical in places:
            text = axis.annotate(label, point, xytext=(dx, dy), textcoords="offset points", ha=horizontal, va=vertical, color=colour, fontsize=9.5)
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken) and frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1:
                break
            text.remove()
        else:
            text = axis.annotate(label, point, xytext=(11, 0), textcoords="offset points", va="center", color=colour, fontsize=9.5)
            box = text.get_window_extent(renderer)
        taken.append(box)


def _save(figure: Figure, path: Path) -> None:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise RunError(f"{path}: give a name that ends in .png, .svg or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise disk_error(error, path) from error
