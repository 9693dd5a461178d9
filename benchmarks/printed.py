"""A page of results on a terminal: its Markdown tables in columns, no number cut."""

from __future__ import annotations

import os
import re
import shutil
import textwrap

GAP = 2  # spaces between columns
ELSEWHERE = 80  # columns of a file or a pipe


def print_page(page: str, width: int | None = None) -> None:
    """``width``: that of COLUMNS or the terminal where None."""
    print(laid_out(page, width or _width()))


def _width() -> int:
    said = os.environ.get("COLUMNS", "")
    return int(said) if said.isdecimal() and int(said) > 0 else shutil.get_terminal_size((ELSEWHERE, 24)).columns


def laid_out(page: str, width: int) -> str:
    """The page with its tables in columns of at most ``width`` characters together: cells too long for theirs go on below, at spaces and hyphens of words. Where
    no column can be narrower, a row is a block of lines, a cell each."""
    lines: list[str] = []
    for block in re.findall(r"(?:^\|.*\n?)+|^(?!\|).*\n?", page, re.M):
        if block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
            lines += _columns([row for row in rows if not all(set(cell) == {"-"} for cell in row)], width)
        else:
            lines += textwrap.wrap(block.replace("**", ""), width, break_long_words=False) or [""]
    return "\n".join(lines).rstrip()


def _columns(rows: list[list[str]], width: int) -> list[str]:
    columns = list(zip(*rows))
    widths = [max(map(len, column)) for column in columns]
    least = [max(max(map(len, _folded(cell, 1))) for cell in column) for column in columns]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        wide = [at for at, own in enumerate(widths) if own > least[at]]
        if not wide:
            return _by_row(rows, width)
        widths[max(wide, key=lambda at: widths[at])] -= 1
    found = []
    for row in rows:
        cells = [_folded(cell, own) for cell, own in zip(row, widths)]
        for at in range(max(map(len, cells))):
            parts = [cell[at] if at < len(cell) else "" for cell in cells]
            found.append((" " * GAP).join(part.ljust(own) for part, own in zip(parts, widths)).rstrip())
    return found


def _by_row(rows: list[list[str]], width: int) -> list[str]:
    (_, *heads), *rows = rows
    reach = max(map(len, heads))
    found = []
    for first, *cells in rows:
        found.append(first)
        for head, cell in zip(heads, cells):
            found += textwrap.wrap(f"  {head.ljust(reach)}  {cell}", width, subsequent_indent=" " * 4, break_long_words=False)
    return found


def _folded(cell: str, width: int) -> list[str]:
    """At spaces, and at hyphens between letters: a sign belongs to its number."""
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=True) or [""]
