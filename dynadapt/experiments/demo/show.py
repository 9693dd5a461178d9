"""The demo's table while it fills: in place on a terminal, a line a row as it comes anywhere else."""

from __future__ import annotations

import sys

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dynadapt.experiments.sweep import COLUMNS, numbers, results_table

from .variants import TITLES, VARIANTS


def table_of(names, summaries: dict[str, dict]) -> Table:
    """Rows in the order of VARIANTS."""
    return results_table({TITLES[name]: summaries.get(name) for name in VARIANTS if name in names})


class Lines:
    """A line a row, as it comes; the whole table at the end."""

    WIDTHS = (20, *(max(8, len(title)) for title in COLUMNS))

    def __init__(self, names, console: Console):
        self.names, self.console, self.summaries = names, console, {}

    def __enter__(self):
        self._line(("run", *COLUMNS))
        return self

    def __exit__(self, kind=None, *exception):
        if self.summaries and kind is None:
            self.console.print()
            self.console.print(table_of(self.summaries, self.summaries))

    def row(self, name: str, summary: dict) -> None:
        self.summaries[name] = summary
        self._line((TITLES[name], *numbers(summary)))

    def status(self, text: str) -> None:
        """Nothing: a line a row is enough."""

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _line(self, cells) -> None:
        first, *rest = (cell.rjust(width) for cell, width in zip(cells, self.WIDTHS))
        self.console.print("  ".join([cells[0].ljust(self.WIDTHS[0]), *rest]).rstrip(), markup=False)
        sys.stdout.flush()


class Filling:
    """The table in place, with what is being done under it. Drawn by this thread alone, whenever there is news."""

    def __init__(self, names, console: Console):
        self.names, self.console, self.summaries, self.text = tuple(names), console, {}, ""
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=True)

    def __enter__(self):
        self.live.start()
        self._draw()
        return self

    def __exit__(self, *exception):
        self.names, self.text = tuple(self.summaries), ""
        self._draw()
        self.live.stop()

    def row(self, name: str, summary: dict) -> None:
        self.summaries[name], self.text = summary, ""
        self._draw()

    def status(self, text: str) -> None:
        self.text = text
        self._draw()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _draw(self) -> None:
        parts = [table_of(self.names, self.summaries)] + [Text(self.text, style="dim", no_wrap=True, overflow="ellipsis")] * bool(self.text)
        self.live.update(Group(*parts), refresh=True)


def shown(names, console: Console):
    return (Filling if console.is_terminal else Lines)(names, console)
