"""Loss against seconds and FLOPs of all that was tried, and the gain window by window of what was judged."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dynadapt.experiments.plot import front
from dynadapt.runs.drawing import COLOURS, STYLE, label_points, log_axis, panels, save

MARKERS = {0: "o", 512: "s", 1536: "D"}


def draw_picture(result, path: Path) -> None:
    """result: a Recommendation. Losses are those of its rows `tried`; candidates that were dropped early, on fewer windows, are hollow."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(14.5, 5.0, columns=3)
        rows = [row for row in result.tried if row["nll"] is not None]
        for axis, cost, label in (
            (axes[0], "seconds_per_token", "seconds per 1,000 tokens"),
            (axes[1], "flops_per_token", "FLOPs per token"),
        ):
            _pareto(axis, rows, cost, label)
        _windows(axes[2], result)
        _legend(figure, rows)
        FigureCanvasAgg(figure).draw()
        for axis, points, labels, colours in axes_labels(axes, rows):
            label_points(axis, points, labels, colours)
        save(figure, path)


def _x(row: dict, cost: str) -> float:
    return row[cost] * (1000 if cost == "seconds_per_token" else 1)


def _pareto(axis, rows, cost: str, label: str) -> None:
    values, most = [row["nll"] for row in rows], max(row["round"] for row in rows)
    axis.plot(
        *zip(*front([(_x(row, cost), value) for row, value in zip(rows, values)])),
        color=COLOURS["lora"],
        linewidth=1.2,
        alpha=0.35,
        zorder=1,
    )
    for row, value in zip(rows, values):
        colour, last = COLOURS[row["adapt"]], row["round"] == most
        axis.plot(
            _x(row, cost),
            value,
            linestyle="",
            marker=MARKERS.get(row["memory"], "o"),
            color=colour,
            markersize=9 if last else 7,
            markerfacecolor=colour if last else "white",
            markeredgecolor="white" if last else colour,
            markeredgewidth=1.2,
            zorder=3,
        )
    low, base = min(values), max(value for row, value in zip(rows, values) if row["adapt"] == "none")
    reach = max(base - low, 0.02)
    axis.set_ylim(
        low - 0.15 * reach, min(max(values) + 0.1 * reach, base + 0.6 * reach)
    )  # what is far worse than static leaves the picture
    log_axis(axis, [_x(row, cost) for row in rows])
    outside = sum(value > axis.get_ylim()[1] for value in values)
    axis.set(xlabel=label, ylabel="NLL (nats per token)", title=f"Loss against {'time' if cost == 'seconds_per_token' else 'computation'}")
    if outside:
        axis.text(
            0.99, 0.99, f"{outside} worse, above the picture", transform=axis.transAxes, ha="right", va="top", fontsize=8.5, color="#6b7280"
        )


def axes_labels(axes, rows):
    """What is judged is named, and the best of each other kind."""
    values, named = [row["nll"] for row in rows], {}
    for i, row in enumerate(rows):
        key = ("judged", row["label"]) if row["judged"] else row["adapt"]
        if key not in named or values[i] < values[named[key]]:
            named[key] = i
    chosen = [
        i for key, i in named.items() if rows[i]["judged"] or not any(rows[j]["judged"] and rows[j]["adapt"] == key for j in named.values())
    ]
    for axis, cost in ((axes[0], "seconds_per_token"), (axes[1], "flops_per_token")):
        inside = [i for i in chosen if values[i] <= axis.get_ylim()[1]]
        yield (
            axis,
            [(_x(rows[i], cost), values[i]) for i in inside],
            [rows[i]["label"] for i in inside],
            [COLOURS[rows[i]["adapt"]] for i in inside],
        )


def _windows(axis, result) -> None:
    before, after = result.windows["static_nll"], result.windows["judged_nll"]
    gains = np.array([np.nan if y is None else x - y for x, y in zip(before, after)], float)
    adapt = next(row["adapt"] for row in result.tried if row["label"] == result.judged)
    order = np.arange(1, len(gains) + 1)
    axis.axhline(0, color="#9ca3af", linewidth=1)
    axis.plot(order, gains, linestyle="", marker="o", color=COLOURS[adapt], markersize=6, alpha=0.7)
    if result.gain_nats is not None:
        low, high = result.interval
        axis.axhspan(low, high, color=COLOURS[adapt], alpha=0.12, linewidth=0)
        axis.axhline(result.gain_nats, color=COLOURS[adapt], linewidth=1.6)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axis.set(
        xlabel="window for judging, in the order learned from", ylabel=f"gain over {result.static} (nats per token)", title=result.judged
    )


def _legend(figure, rows) -> None:
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], linestyle="", marker="o", color=COLOURS[kind], label={"none": "static", "lora": "LoRA"}.get(kind, kind), markersize=7)
        for kind in dict.fromkeys(row["adapt"] for row in rows)
    ]
    handles += [
        line(
            [],
            [],
            linestyle="",
            marker=MARKERS.get(memory, "o"),
            color="#374151",
            label=f"memory {memory:,}" if memory else "no memory",
            markersize=7,
        )
        for memory in sorted({row["memory"] for row in rows})
    ]
    if len({row["round"] for row in rows}) > 1:
        handles.append(
            line(
                [],
                [],
                linestyle="",
                marker="o",
                color="#374151",
                markerfacecolor="white",
                label="dropped earlier: fewer windows",
                markersize=7,
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
