"""Where tables are printed: whole, on a terminal and elsewhere."""

from __future__ import annotations

import os
import sys

ELSEWHERE = 200  # columns of a file or a pipe: no table of ours is wider


def table_console(**settings):
    """A rich Console as wide as the terminal. Where there is none, and COLUMNS does not say, rich takes 80 columns and cuts numbers; this one ELSEWHERE."""
    from rich.console import Console

    there = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(**settings) if there else Console(width=ELSEWHERE, **settings)


def print_whole(console, table) -> None:
    """A table with all of its numbers: where the terminal is too narrow for it, its lines run on."""
    from rich.console import Console

    needed = Console(width=1000).measure(table).maximum
    (console if console.width >= needed else Console(file=console.file, width=needed, highlight=False)).print(table)
