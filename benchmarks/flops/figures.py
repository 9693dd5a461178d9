"""One picture a claim, drawn from results.json alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynadapt.experiments.plot import COLOURS, CYCLE, STYLE, label_points

KINDS = {"lora": ("LoRA", COLOURS["lora"]), "rows": ("10% of rows", COLOURS["rows"]), "full": ("full", COLOURS["full"])}


def draw_all(results: dict, folder: Path) -> list[Path]:
    draw = {
        "1": _gains,
        "2": _memory,
        "3a": _frequency,
        "3b": _fronts,
        "4": _kinds,
        "5": _short_long,
        "6a": _shift,
        "6b": _tuned,
        "7": _memories,
    }
    paths = []
    with matplotlib.rc_context({**STYLE, "font.size": 9}):
        for number, function in draw.items():
            figure = Figure(layout="constrained", dpi=110)
            function(figure, results["claims"][number]["rows"], results)
            paths.append(folder / f"claim-{number}.png")
            figure.savefig(paths[-1])
    return paths


def _texts(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["text"] for row in rows))


ALL = "all texts"


def _with_mean(rows: list[dict], results: dict, number: str) -> list[dict]:
    """With the comparisons over texts as one more group."""
    return [*rows, *({**row, "text": ALL} for row in results["claims"][number]["over_texts"])]


def _bars(axis, rows: list[dict], groups: list[str], labels: list[str], key, colours: list[str]) -> None:
    """Horizontal bars of differences with their intervals: a group a text, a bar a label."""
    height = 0.8 / len(labels)
    for i, label in enumerate(labels):
        for g, group in enumerate(groups):
            row = next(r for r in rows if r["text"] == group and key(r) == label)
            y = g + (i - (len(labels) - 1) / 2) * height
            axis.barh(y, row["mean"], height * 0.9, color=colours[i], label=label if g == 0 else None)
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [y, y], color="#111827", linewidth=1)
    axis.set_yticks(range(len(groups)), groups)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    if groups[-1] == ALL:
        axis.axhline(len(groups) - 1.5, color="#9ca3af", linewidth=0.8)
    axis.axvline(0, color="#374151", linewidth=0.8)
    axis.grid(False, axis="y")


def _legend(figure, axis, columns: int = 3) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _gains(figure, rows, results) -> None:
    figure.set_size_inches(9, 5.0)
    rows = _with_mean(rows, results, "1")
    axes = figure.subplots(1, 2, sharey=True, sharex=True)
    for axis, memory in zip(axes, (False, True)):
        chosen = [r for r in rows if ("memory" in r["online"]) == memory]
        kind = lambda r: KINDS[r["online"].split("-")[0]][0]  # noqa: E731
        _bars(axis, chosen, _texts(rows), [name for name, _ in KINDS.values()], kind, [c for _, c in KINDS.values()])
        axis.set(title="segments of 512" + (", memory 512" if memory else ""), xlabel="online less static (nats per token)")
    _legend(figure, axes[0])


def _memory(figure, rows, results) -> None:
    figure.set_size_inches(7.5, 5.0)
    axis = figure.subplots()
    label = lambda r: (
        ("LoRA" if r["memory"].startswith("lora") else "static")
        + f", reach {r['memory'].rsplit('-', 1)[1]} ({_ratio(rows, r)} of the FLOPs)"
    )  # noqa: E731
    labels = list(dict.fromkeys(label(r) for r in rows))
    both = _with_mean(rows, results, "2")
    _bars(axis, both, _texts(both), labels, label, ["#9ca3af", "#6b7280", COLOURS["lora"]])
    axis.set(xlabel="memory less overlap (nats per token); below 0 memory is better")
    _legend(figure, axis, 1)


def _ratio(rows, row) -> str:
    """Memory's FLOPs as a share of the overlap's, which hardly differs between texts."""
    return f"{np.mean([r['flops_ratio'] for r in rows if r['memory'] == row['memory']]):.0%}"


def _panels(figure, names: list[str], height: float = 3.0):
    columns = 3 if len(names) > 4 else len(names)
    lines = -(-len(names) // columns)
    figure.set_size_inches(2.6 * columns + 0.6, height * lines + 0.5)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names):
        axis.set_title(name)
    return axes


def _cost_axis(axis) -> None:
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    axis.set(xlabel="FLOPs per token")


def _frequency(figure, rows, results) -> None:
    axes = _panels(figure, _texts(rows))
    lines = (
        ("steps", "o-", COLOURS["lora"], "LoRA, an update every k segments of 128"),
        ("accumulated", "^--", COLOURS["full"], "the same, each from all k"),
    )
    for axis, row in zip(axes, rows):
        for key, look, colour, label in lines:
            axis.plot([s["cost"] for s in row[key]], [s["nll"] for s in row[key]], look, color=colour, label=label)
        for step in row["steps"]:
            axis.annotate(
                f"k={step['every']}", (step["cost"], step["nll"]), xytext=(4, 5), textcoords="offset points", color=COLOURS["lora"]
            )
        axis.plot(row["static_cost"], row["static"], "s", color=COLOURS["none"], label="static, the same memory")
        axis.margins(0.2)
        _cost_axis(axis)
    figure.supylabel("NLL (nats per token)", fontsize=9)
    _legend(figure, axes[0])


def _fronts(figure, rows, results) -> None:
    axes = _panels(figure, _texts(rows), 3.2)
    for axis, row in zip(axes, rows):
        cells = [c for c in results["cells"] if c["text"] == row["text"] and not c["tuned"]]
        for online, colour, label in (
            (False, COLOURS["none"], "static: windows, memory, overlap"),
            (True, COLOURS["lora"], "online: LoRA, rows, full"),
        ):
            points = [(c["flops_per_token"], c["nll"]) for c in cells if c["online"] == online]
            front = [(s["cost"], s["online"]) for s in row["steps"]] if online else row["static_front"]
            axis.plot(*zip(*points), "o", markersize=4, color=colour, label=label)
            axis.step(*zip(*front), where="post", color=colour, alpha=0.5)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.FixedLocator([2e8, 3e8, 5e8, 1e9, 2e9, 5e9, 1e10, 1e11]))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        _cost_axis(axis)
    figure.supylabel("NLL (nats per token)", fontsize=9)
    _legend(figure, axes[0])


def _kinds(figure, rows, results) -> None:
    kinds = results["claims"]["4"]["kinds"]
    axes = _panels(figure, list(kinds), 3.2)
    for axis, of_text in zip(axes, kinds.values()):
        for prefix, (name, colour) in {**KINDS, "rows": ("rows", COLOURS["rows"])}.items():
            points = sorted((k["learned_parameters"], k["nll"]) for c, k in of_text.items() if c.startswith(prefix))
            axis.plot(*zip(*points), "o-", markersize=5, color=colour, label=name)
        axis.axhline(of_text["static-512"]["nll"], color=COLOURS["none"], linestyle="--", label="static")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
        axis.set(xlabel="learned parameters")
    figure.supylabel("NLL (nats per token)", fontsize=9)
    _legend(figure, axes[0], 4)


def _short_long(figure, rows, results) -> None:
    figure.set_size_inches(7.5, 6.2)
    axis = figure.subplots()
    titles = {c["name"]: c["title"] for c in results["cells"]}
    label = lambda r: f"{titles[r['online']]}  less  {titles[r['static']]}  ({_mean(rows, r):.1f}x the FLOPs)"  # noqa: E731
    both = _with_mean(rows, results, "5")
    _bars(axis, both, _texts(both), list(dict.fromkeys(map(label, rows))), label, CYCLE)
    axis.set(xlabel="nats per token; below 0 the short context that learns is better")
    _legend(figure, axis, 1)


def _mean(rows, row) -> float:
    return float(np.mean([r["flops_ratio"] for r in rows if (r["online"], r["static"]) == (row["online"], row["static"])]))


def _shift(figure, rows, results) -> None:
    figure.set_size_inches(6.4, 4.0)
    axis = figure.subplots()
    for row in rows:
        x = row["bits_per_byte"]
        if row["low"] is not None:
            axis.plot([x, x], [row["low"], row["high"]], color=COLOURS["lora"], alpha=0.5)
        axis.plot(x, row["mean"], "o", color=COLOURS["lora"])
    axis.axhline(0, color="#374151", linewidth=0.8)
    axis.margins(x=0.15)
    axis.set(xlabel="bits per byte of the static model (distance of the text from the model)", ylabel="gain of LoRA (nats per token)")
    FigureCanvasAgg(figure).draw()
    label_points(axis, [(r["bits_per_byte"], r["mean"]) for r in rows], [r["text"] for r in rows], ["#374151"] * len(rows))


def _tuned(figure, rows, results) -> None:
    figure.set_size_inches(6.4, 4.2)
    axis = figure.subplots()
    for i, (key, label, colour) in enumerate(
        (("before", "the model as it is", COLOURS["lora"]), ("after", "fine-tuned on the domain first", COLOURS["full"]))
    ):
        axis.barh(np.arange(len(rows)) + (i - 0.5) * 0.38, [r[key] for r in rows], 0.36, color=colour, label=label)
    axis.set_yticks(range(len(rows)), _texts(rows))
    axis.invert_yaxis()
    axis.axvline(0, color="#374151", linewidth=0.8)
    axis.grid(False, axis="y")
    axis.set(xlabel="gain of LoRA over static (nats per token)")
    _legend(figure, axis)


def _memories(figure, rows, results) -> None:
    axes = _panels(figure, _texts(rows), 3.2)
    shades = {
        "weights": (COLOURS["lora"], "weights (LoRA)"),
        "activations": (COLOURS["rows"], "activations (memory 512)"),
        "both": (COLOURS["full"], "both"),
    }
    for axis, row in zip(axes, rows):
        classes = {"all tokens": {**row["gains"], "share": 1.0}, **row["classes"]}
        for i, (key, (colour, label)) in enumerate(shades.items()):
            axis.barh(np.arange(len(classes)) + (i - 1) * 0.27, [c[key] or 0 for c in classes.values()], 0.25, color=colour, label=label)
        names = ["all", "new", "last seen\n> 512 ago", "last seen\nwithin 512"]
        axis.set_yticks(range(len(classes)), [f"{n} ({c['share']:.0%})" for n, c in zip(names, classes.values())])
        axis.invert_yaxis()
        axis.axvline(0, color="#374151", linewidth=0.8)
        axis.grid(False, axis="y")
        axis.set(xlabel="gain (nats per token)")
    figure.set_size_inches(3.6 * (3 if len(rows) > 4 else len(rows)), figure.get_size_inches()[1])
    _legend(figure, axes[0])
