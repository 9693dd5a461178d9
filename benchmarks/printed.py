"""A page of results on a terminal: its Markdown tables in columns, no number cut."""

from __future__ import annotations

import re

from rich import box
from rich.table import Table

from dynadapt.runs.console import table_console

TABLE = re.compile(r"(?:^\|.*\n?)+|^(?!\|).*\n?", re.M)  # or a line of text


def print_page(page: str, console=None) -> None:
    """console: of rich; None: as `dynadapt` prints tables."""
    console = console or table_console(highlight=False, markup=False, emoji=False)
    width = console.width
    for block in TABLE.findall(page.rstrip("\n")):
        if block.startswith("|"):
            table = _table(block)
            console.width = max(width, sum(column.min_width + 2 for column in table.columns))  # on a narrower terminal its lines run on
            console.print(table, crop=False)
            console.width = width
        else:
            console.print(block.rstrip("\n").replace("**", ""))


def _table(block: str) -> Table:
    """Cells go on below, at spaces alone."""
    heads, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for at, head in enumerate(heads):
        table.add_column(head, min_width=_longest([head, *(row[at] for row in rows)]))
    for row in rows:
        table.add_row(*row)
    return table


def _longest(cells: list[str]) -> int:
    return max((len(word) for cell in cells for word in cell.split()), default=1)
