"""Where tables are printed: whole, on a terminal and elsewhere."""

from __future__ import annotations

import os
import shutil
import sys

ELSEWHERE = 200  # columns of a file or a pipe: no table of ours is wider
FOLDED = 12  # characters of a name that is folded


def table_console(**settings):
    """A rich Console as wide as COLUMNS says, or the terminal is. Where there is neither, rich takes 80 columns and cuts numbers; this one ELSEWHERE. A COLUMNS
    that is no positive number says nothing: with 0 rich leaves lines out."""
    from rich.console import Console

    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return Console(width=int(said), **settings)
    if not sys.stdout.isatty():
        return Console(width=ELSEWHERE, **settings)
    return Console(width=shutil.get_terminal_size().columns if "COLUMNS" in os.environ else None, **settings)


def print_whole(console, table) -> None:
    """A table with all of its numbers: where the terminal is too narrow for it, its lines run on. Columns that fold do so first, to FOLDED characters, if no
    other can be made narrower."""
    width, needed = console.width, _needed(console, table)
    try:
        console.width = max(width, needed)
        console.print(table)
    finally:
        console.width = width


def _needed(console, table) -> int:
    folds = [column for column in table.columns if column.overflow == "fold" and not column.no_wrap]
    if not all(column.no_wrap for column in table.columns if column not in folds):
        folds = []
    widths = [column.max_width for column in folds]
    try:
        for column in folds:
            column.max_width = FOLDED
        return console.measure(table, options=console.options.update(width=1000)).maximum
    finally:
        for column, before in zip(folds, widths):
            column.max_width = before
