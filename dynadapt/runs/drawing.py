"""What all pictures share: their look, labels that fit, legends that cover nothing, ticks that say what they stand at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .rundir import RunError, disk_error

COLOURS = {"none": "#6b7280", "lora": "#2563eb", "rows": "#d97706", "full": "#0f8a5f"}
CYCLE = ["#2563eb", "#d97706", "#0f8a5f", "#b91c6b", "#7c3aed", "#0891b2", "#a16207", "#dc2626", "#4b5563", "#65a30d"]
# Names of runs and texts may hold a $, so mathematics is off; an exponent over the axis would cover the title that stands there.
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.labelcolor": "#374151",
    "svg.hashsalt": "dynadapt",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-12, 12),
}
ROW = 0.215  # inches of a legend's row
GAP = 0.65  # inches beside a legend's text: its handle, and the space between columns


# ---- text


@lru_cache(maxsize=1)
def _known() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def drawable(text: str) -> str:
    """Characters that the font has; others as their code point, line ends and tabs as spaces."""
    text = " ".join(str(text).split())
    return "".join(c if ord(c) in _known() else f"U+{ord(c):04X}" for c in text)


def shortened(text: str, most: int) -> str:
    """At most `most` characters: the middle goes, because names of runs differ at both ends."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}\u2026{text[len(text) - (most - 1 - head) :]}"


def text_width(text: str, size: float = 10, weight: str = "normal") -> float:
    """Inches."""
    figure = Figure(figsize=(1, 1), dpi=100)
    drawn = figure.text(0, 0, text, fontsize=size, fontweight=weight)
    return drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 100


def fitted(text: str, inches: float, size: float = 10, weight: str = "normal") -> str:
    """`text`, drawable, and shortened where it would be wider than this."""
    text = drawable(text)
    most = len(text)
    while most > 4 and (wide := text_width(shortened(text, most), size, weight)) > inches:
        most = min(most - 1, int(most * inches / wide))
    return shortened(text, most)


def told_apart(labels: Sequence[str]) -> list[str]:
    """Labels that have become equal by shortening get a number."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(f"{label} ({seen[label]})" if labels.count(label) > 1 else label)
    return found


# ---- legends


def legend_rows(labels: Sequence[str], width: float, most_columns: int = 8, size: float = 10) -> tuple[list[str], int, int]:
    """(labels that fit, columns, rows) of a legend that is at most `width` inches wide."""
    labels = told_apart([fitted(label, min(width - GAP, max(3.0, width / 2 - GAP)), size) for label in labels])
    widest = max((text_width(label, size) for label in labels), default=0) + GAP
    columns = max(1, min(most_columns, int(width // widest), len(labels)))
    return labels, columns, -(-len(labels) // columns)


def legend_below(figure: Figure, handles: Sequence, labels: Sequence[str], most_columns: int = 8, size: float = 10) -> None:
    """A legend under the figure's axes, which are laid out above it: the figure becomes as much higher as the legend is."""
    if not handles:
        return
    whole = isinstance(figure, Figure)  # a part of a figure keeps its size, and its axes make room
    width, height = figure.get_size_inches() if whole else (figure.bbox.width / figure.dpi, 0)
    labels, columns, rows = legend_rows(labels, width - 0.4, most_columns, size)
    labels = [f"\u2009{label}" if label.startswith("_") else label for label in labels]  # such labels are not shown otherwise
    if whole:
        figure.set_size_inches(width, height + ROW * rows * size / 10)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=size)


# ---- axes


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """(figure of this size in inches, its axes as `Figure.subplots` gives them)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def token_axis(axis) -> None:
    """About five ticks of the x axis, as 20k or 1M."""
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))


def log_axis(axis, values: Sequence[float]) -> None:
    """A logarithmic x axis around these values, with about four ticks at numbers that are round there; one value is enough."""
    values = [value for value in values if math.isfinite(value) and value > 0]
    if not values:
        axis.set_xticks([])
        return
    low, high = min(values), max(values)
    room = max((high / low) ** 0.1, 1.15)
    axis.set_xscale("log")
    axis.set_xlim(low / room, high * room)
    ticks = _round_between(low / room, high * room)
    axis.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    axis.xaxis.set_minor_locator(ticker.NullLocator())


def _round_between(low: float, high: float, most: int = 5) -> list[float]:
    """Two to `most` round numbers between two: evenly spaced where those are near, else spread over the decades."""
    if high / low < 8:
        ticks = [float(f"{tick:.10g}") for tick in ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
        return [tick for tick in ticks if low <= tick <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for grid in ((1,), (1, 3), (1, 2, 5)):
        ticks = [float(f"{sub}e{decade}") for decade in decades for sub in grid]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: -(-len(ticks) // most)]


def say_nothing_here(axis, why: str) -> None:
    """In an axis without data: no ticks that mean nothing, and why."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", va="center", color="#6b7280")


PLACES = [(11, 0), (-11, 0), (0, 11), (0, -11), (9, 10), (-9, 10), (9, -10), (-9, -10), (9, 22), (9, -22)]
FAR = [
    (round(radius * math.cos(angle)), round(radius * math.sin(angle)))
    for radius in (26, 38, 52, 70, 92, 120)
    for angle in (math.pi / 8 * k for k in range(16))
]


def label_points(axis, points, labels, colours, always: bool = True) -> list[int]:
    """Each label beside its point, on the first side where it covers neither a point nor another label, farther away with a line where
    there is none near; returns the places in `labels` for which there was no room (with `always`, those are drawn all the same)."""
    figure = axis.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axis.get_window_extent(renderer)
    scale = figure.dpi / 72
    taken = [
        matplotlib.transforms.Bbox.from_bounds(x - 6 * scale, y - 6 * scale, 12 * scale, 12 * scale)
        for x, y in axis.transData.transform(points)
    ]
    left = []
    for index, (point, label, colour) in enumerate(zip(points, labels, colours)):
        for place, (dx, dy) in enumerate(PLACES + FAR):
            text = axis.annotate(
                label,
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                ha="left" if dx > 3 else "right" if dx < -3 else "center",
                va="center" if abs(dy) <= 3 else "bottom" if dy > 0 else "top",
                color=colour,
                fontsize=9.5,
            )
            box = text.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if place >= len(PLACES):
                    axis.annotate(
                        "",
                        point,
                        xytext=(dx, dy),
                        textcoords="offset points",
                        arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5},
                    )
                break
            text.remove()
        else:
            left.append(index)
            if always:
                axis.annotate(label, point, xytext=(11, 0), textcoords="offset points", va="center", color=colour, fontsize=9.5)
    return left


def save(figure: Figure, path: Path, dpi: int = 160) -> Path:
    """Writes the picture; RunError for another kind of file, DiskError when the disk fails."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise RunError(f"{path}: give a name that ends in .png, .svg or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise disk_error(error, path) from error
    return path
