"""An audit on a terminal: its progress, and its report."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynadapt.runs.console import table_console
from dynadapt.runs.listing import printable
from dynadapt.runs.progress import Status, progress_for

from .report import FAILED, LEFT_OUT, NOT_JUDGED, PASSED, Report, power_in_words

STYLES = {PASSED: "green", FAILED: "bold red", NOT_JUDGED: "yellow", LEFT_OUT: "dim"}
ENDS = {
    PASSED: "PASSED: nothing of what was tried went against it",
    FAILED: "FAILED: scores know what they must not, or are not what they are said to be",
    NOT_JUDGED: "NOT JUDGED: nothing certain went against it, and not everything could be judged",
}
WIDEST = 118


class Auditing(Status):
    """Of an audit, by its events: "run" and "runs" (both from 1), and "what"."""

    fields, transient = ("count", "bar", "share", "left", "said"), True

    def __init__(self):
        self.started = time.monotonic()

    def add(self, event: dict) -> bool:
        done, runs = event["run"] - 1, event["runs"]
        self.count, self.said, self.fraction = f"{event.get('unit', 'run')} {event['run']} of {runs}", event["what"], done / runs
        self.seconds_left = (time.monotonic() - self.started) / done * (runs - done) if done else None
        return True

    def line(self) -> str:
        return f"{self.count}  {self.share}  {self.left}  {self.said}"


def progress(quiet: bool):
    """Shows events of an audit on standard error, as a bar where that is a terminal."""
    return _Silent() if quiet else progress_for(sys.stderr, status=Auditing())


class _Silent:
    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def __call__(self, event: dict) -> None:
        pass


def print_report(report: Report, console: Console | None = None) -> None:
    """A row a check, what may have escaped, and the verdict."""
    console = console or table_console(highlight=False, markup=False, emoji=False)
    width = min(console.width, WIDEST)
    table = Table(box=None, show_header=False, pad_edge=False, width=width)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for check in report.checks:
        shown = check.verdict.upper() if check.verdict == FAILED else check.verdict
        table.add_row(check.name, Text(shown, style=STYLES[check.verdict]), Text(check.said))
    console.print(Text(f"audit of {report.subject}"), soft_wrap=True)
    console.print()
    console.print(table)
    console.print()
    if report.last_words:
        console.print(Text("the program's last words on standard error:"))
        console.print(Text("\n".join(f"  {printable(line)}" for line in report.last_words.splitlines()), style="dim"), soft_wrap=True)
        console.print()
    for note in [power_in_words(report.tried), *report.notes]:
        console.print(Text(note, style="dim"), width=width)
    console.print()
    console.print(Text(ENDS[report.verdict], style=STYLES[report.verdict]), soft_wrap=True)
