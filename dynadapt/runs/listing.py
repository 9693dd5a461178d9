"""Rows of runs as a table that fits the terminal: sorted, filtered, one or two lines a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from .find import Row

WIDE = 120  # columns from which on what a run did has a column of its own
COLOURS = {"finished": "", "running": "cyan", "stopped": "yellow", "failed": "red", "damaged": "bold red"}
LAST = math.inf
SORT = {  # rows whose number is not known come last
    "date": lambda row: row.date,
    "name": lambda row: row.name,
    "kind": lambda row: (row.kind, row.name),
    "state": lambda row: (row.state, row.name),
    "result": lambda row: (row.result[0] == "", row.result[0], _or_last(row.result[1])),
    "tokens": lambda row: _or_last(row.tokens),
    "time": lambda row: _or_last(row.seconds),
    "size": lambda row: row.bytes,
}


def _or_last(value: float | None) -> float:
    return LAST if value is None else value


def chosen(
    rows: Sequence[Row], kinds: Sequence[str] = (), unfinished: bool = False, sort: str = "date", reverse: bool = False
) -> list[Row]:
    """Those of these kinds (none given: all), and not finished if `unfinished`, in order; the order among equals is by name."""
    kept = [row for row in rows if (not kinds or row.kind in kinds) and not (unfinished and row.state == "finished")]
    return sorted(sorted(kept, key=SORT["name"]), key=SORT[sort], reverse=reverse)


def state_words(row: Row) -> str:
    """finished, stopped 45%, failed, ..."""
    share = "" if row.fraction is None else f" {min(int(100 * row.fraction), 99)}%"
    return row.state + share


def result_words(row: Row) -> str:
    name, value, _ = row.result
    if value is None:
        return "-"
    return f"{name} {value:+.4f}" if name in ("change", "expected") else f"{name} {value:.4f}"


def count(value: float | None) -> str:
    """12,289 as 12.3k."""
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}" if minutes < 6000 else f"{minutes // 1440}d"


def minutes(value: float) -> str:
    """How long something takes, in words."""
    return "less than 0.1 minutes" if value < 0.05 else f"{value:.1f} minutes" if value < 10 else f"{value:,.0f} minutes"


def disk(size: int) -> str:
    for limit, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * limit:
            return f"{size / limit:.3g} {letter}" if size < 999.5 * limit else f"{size / limit:.0f} {letter}"
    return f"{size} B"


def day(seconds: float, now: datetime | None = None) -> str:
    """In local time: 14:03 today, Nov 26 this year, else 2025-11."""
    then, now = datetime.fromtimestamp(seconds), now or datetime.now()
    if then.date() == now.date():
        return then.strftime("%H:%M")
    return then.strftime("%b %d") if then.year == now.year else then.strftime("%Y-%m")


def runs_table(rows: Sequence[Row], width: int):
    """A rich Table. Narrow terminals get what a run did under its name, and fold names, never numbers."""
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("run", overflow="fold", ratio=None, min_width=12)
    if wide:
        table.add_column("kind", no_wrap=True)
        table.add_column("what", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in ("result", "tokens", "time", "date", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        said = row.why or row.what
        name, kind = printable(row.name), row.kind
        first = (
            [Text(name), kind, Text(printable(said))]
            if wide
            else [Text.assemble(name, "\n", (printable(f"{kind}: {said}" if said else kind), "dim"))]
        )
        table.add_row(
            *first,
            Text(state_words(row), style=COLOURS[row.state]),
            result_words(row),
            count(row.tokens),
            duration(row.seconds),
            day(row.date),
            disk(row.bytes),
        )
    return table


def printable(text: str) -> str:
    """Without what would move the cursor or is no character: file names may hold anything."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text.encode("utf-8", "replace").decode("utf-8"))


def sentence(rows: Sequence[Row], all_of: int) -> str:
    """How many there are, and of which state."""
    states = [row.state for row in rows]
    parts = [f"{states.count(state)} {state}" for state in COLOURS if state in states]
    paths = {row.path for row in rows}
    size = sum(row.bytes for row in rows if not paths & set(row.path.parents))  # a run in another's directory is counted with it
    left = f" (of {all_of})" if all_of != len(rows) else ""
    return f"{len(rows)} run{'s' * (len(rows) != 1)}{left}: {', '.join(parts)}; {disk(size)}"
