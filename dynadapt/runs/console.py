"""Where tables are printed: whole, on a terminal and elsewhere."""

from __future__ import annotations

import os
import shutil
import sys

ELSEWHERE = 200  # columns of a file or a pipe: no table of ours is wider


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
    """A table with all of its numbers: where the terminal is too narrow for it, its lines run on."""
    width = console.width
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    try:
        console.width = max(width, needed)
        console.print(table)
    finally:
        console.width = width
