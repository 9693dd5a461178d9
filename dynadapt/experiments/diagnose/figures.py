"""The plots of a diagnosis, as matplotlib figures made from its summary alone."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dynadapt.runs.drawing import STYLE, panels, save

WORSE, BETTER, NEUTRAL = "#b91c1c", "#0f8a5f", "#6b7280"


def _styled(draw):
    @wraps(draw)
    def drawn(*arguments) -> Figure:
        with matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "text.usetex": False}):
            return draw(*arguments)

    return drawn


def _colours(values) -> list[str]:
    return [WORSE if value > 0 else BETTER for value in values]


@_styled
def classes(summary: dict) -> Figure:
    """Each class's part of the change, with its interval."""
    records = summary["classes"][::-1]
    figure, axis = panels(7.2, 0.9 + 0.42 * len(records))
    values = np.array([r["contribution"] for r in records])
    axis.barh([r["class"] for r in records], values, color=_colours(values), height=0.62, alpha=0.85)
    for y, record in enumerate(records):
        if None not in record["contribution_interval"]:
            axis.plot(record["contribution_interval"], [y, y], color="#111827", linewidth=1.4, solid_capstyle="butt")
    axis.axvline(0, color="#374151", linewidth=0.9)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="part of the change (nats per token of the text); line: 95% interval", title="Where the change comes from, by class")
    return figure


@_styled
def types(summary: dict, count: int = 20) -> Figure:
    """The token types with the largest part in the change."""
    records = summary["top_types"][:count][::-1]
    figure, axis = panels(7.2, 0.9 + 0.27 * len(records))
    values = [r["contribution"] for r in records]
    rows = range(len(records))
    axis.barh(rows, values, color=_colours(values), height=0.7, alpha=0.85)
    axis.set_yticks(rows, [_drawable(r["shown"]) for r in records], family="DejaVu Sans Mono", fontsize=8.5)
    axis.axvline(0, color="#374151", linewidth=0.9)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="part of the change (nats per token of the text)", title="Where the change comes from, by token type")
    return figure


def _drawable(text: str) -> str:
    """Characters that the plot's font has; others as their code point."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_charmap()
    return "".join(c if ord(c) in known else f"U+{ord(c):04X}" for c in text)[:24]


@_styled
def concentration(summary: dict) -> Figure:
    """Share of the change that the top types explain, in sample and on the other half."""
    figure, axis = panels(7.2, 3.3)
    records = summary["concentration"]
    rows = np.arange(len(records))
    names = (
        ("net", "of the change", "#2563eb"),
        ("held_out", "of the change, on the other half of the text", "#7c3aed"),
        ("tokens", "their share of the tokens", "#9ca3af"),
    )
    for i, (key, label, colour) in enumerate(names):
        values = [np.nan if r[key] is None else 100 * min(max(r[key], -2), 2) for r in records]
        bars = axis.bar(rows + 0.27 * (i - 1), values, 0.25, color=colour, label=label, alpha=0.9)
        labels = ["-" if r[key] is None else f"{r[key]:.0%}" for r in records]
        axis.bar_label(bars, labels, fontsize=8, color="#374151", padding=1)
    axis.axhline(0, color="#374151", linewidth=0.9)
    axis.set_xticks(rows, [f"top {r['types']}" for r in records])
    axis.grid(axis="x", visible=False)
    axis.margins(y=0.14)
    axis.set(ylabel="percent (cut at 200)", title="How few types explain it")
    axis.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    return figure


@_styled
def documents(summary: dict) -> Figure:
    """The change of every document, and the mean with its interval."""
    records = sorted(summary["documents"], key=lambda d: d["after"] - d["before"])
    values = np.array([d["after"] - d["before"] for d in records])
    sizes = np.array([d["tokens"] for d in records], dtype=float)
    figure, axis = panels(7.2, 3.0)
    low, high = summary["interval"]
    if low is not None:
        axis.axhspan(low, high, color="#fde68a", alpha=0.7, label="95% interval of the mean")
    axis.axhline(summary["change"], color="#a16207", linewidth=1.3, label="mean over tokens")
    axis.scatter(
        range(1, len(values) + 1), values, s=12 + 90 * sizes / sizes.max(), color=_colours(values), alpha=0.7, linewidth=0, zorder=3
    )
    axis.axhline(0, color="#374151", linewidth=0.9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="documents, by their change (area: tokens)", ylabel="change (nats per token)", title="Which documents change")
    axis.legend(frameon=False, fontsize=8.5, loc="best")
    return figure


@_styled
def places(summary: dict) -> Figure:
    """The mean change by how many tokens of its window a token sees."""
    records = summary["places"]
    figure, axis = panels(7.2, 2.6)
    values = [r["change"] for r in records]
    axis.bar(range(len(records)), values, color=_colours(values), width=0.6, alpha=0.85)
    labels = [str(r["first"]) if r["first"] == r["last"] else f"{r['first']} to {r['last']}" for r in records]
    axis.set_xticks(range(len(records)), [f"{label}\n{r['tokens']:,} tokens" for label, r in zip(labels, records)], fontsize=8.5)
    axis.axhline(0, color="#374151", linewidth=0.9)
    axis.grid(axis="x", visible=False)
    axis.set(xlabel="tokens seen within the window", ylabel="change (nats per token)", title="The change by place in the window")
    return figure


@_styled
def controls(summary: dict) -> Figure:
    """The change as the text is, and in each normal form."""
    rows = [("as it is", summary["change"], summary["interval"])]
    rows += [(c["title"], c["change"], c["interval"]) for c in summary["controls"]]
    figure, axis = panels(7.2, 0.9 + 0.45 * len(rows))
    for y, (_, change, ends) in enumerate(rows[::-1]):
        colour = WORSE if change > 0 else BETTER
        if None not in ends:
            axis.plot(ends, [y, y], color=colour, linewidth=2.2, alpha=0.6)
        axis.plot(change, y, "o", color=colour, markersize=7)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows[::-1]])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.axvline(0, color="#374151", linewidth=0.9)
    axis.set(xlabel="change (nats per token), 95% interval", title="Is it the format of the text?")
    return figure


@_styled
def probe(summary: dict) -> Figure:
    """The change of each window of a probe, in the order in which they were learned from."""
    change = np.array(summary["change"])
    figure, axis = panels(7.2, 3.0)
    half = len(change) // 2
    low, high = summary["interval"]
    if low is not None:
        axis.fill_between(
            [half + 0.5, len(change) + 0.5], low, high, color="#fde68a", alpha=0.7, linewidth=0, label="expected change, 95% interval"
        )
    axis.plot([half + 0.5, len(change) + 0.5], [summary["expected_change"]] * 2, color="#a16207", linewidth=1.3)
    axis.scatter(range(1, len(change) + 1), change, s=34, color=_colours(change), alpha=0.85, linewidth=0, zorder=3)
    axis.axhline(0, color="#374151", linewidth=0.9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(
        xlabel="windows, in the order in which they were learned from",
        ylabel="adapted less static (nats per token)",
        title="What learning gains on the next window",
    )
    axis.legend(frameon=False, fontsize=8.5)
    return figure


def draw_summary(summary: dict, out: Path, apart: bool = False) -> list[Path]:
    """Every figure of a diagnosis, or of an advice, as OUT's name with -classes, -types, ...; `apart`: in a directory of OUT's stem."""
    drawn = []
    for draw in (probe,) if summary.get("kind") == "advice" else (classes, types, concentration, documents, controls, places):
        if draw is controls and not summary["controls"]:
            continue
        name = draw.__name__
        drawn.append(save(draw(summary), out.with_suffix("") / f"{name}{out.suffix}" if apart else out.with_stem(f"{out.stem}-{name}")))
    return drawn
