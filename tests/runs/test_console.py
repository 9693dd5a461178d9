"""Tables where they are printed: in a file or a pipe, and on a terminal that is too narrow for them, no number is cut."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from dynadapt.runs.console import ELSEWHERE, print_whole, table_console

EXPLAIN = "plan --model smollm2-135m --streams 1 --segment 512 --adapt lora --gpu h100 --explain"


def table(columns: int) -> Table:
    found = Table(box=None)
    for i in range(columns):
        found.add_column(f"column {i}", no_wrap=True)
    found.add_row(*(f"{10**i:,}" for i in range(columns)))
    return found


@pytest.mark.parametrize("columns", ["40", None])
def test_no_number_of_a_plan_is_cut_in_a_pipe(columns):
    environment = {**os.environ, "COLUMNS": columns or ""}
    if columns is None:
        del environment["COLUMNS"]
    ran = subprocess.run([sys.executable, "-m", "dynadapt", *EXPLAIN.split()], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "\u2026" not in ran.stdout and "linear_activation_backward" in ran.stdout and "predicted  share     limit" in ran.stdout


def test_a_console_is_as_wide_as_the_terminal_as_columns_or_as_any_table(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert table_console().width == ELSEWHERE
    monkeypatch.setenv("COLUMNS", "97")
    assert table_console().width == 97
    for nothing in ("0", "abc", "", "-5"):
        monkeypatch.setenv("COLUMNS", nothing)
        assert table_console().width == ELSEWHERE


def test_a_terminal_is_as_wide_as_it_is_where_columns_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((60, 24)))
    monkeypatch.setattr(sys, "__stdout__", open(os.devnull))
    monkeypatch.setenv("COLUMNS", "0")
    assert table_console().width == 60


def test_a_table_that_is_too_wide_runs_on():
    narrow = Console(file=io.StringIO(), width=30)
    narrow.print(table(6))
    assert "\u2026" in narrow.file.getvalue()  # what rich does by itself
    whole = Console(file=io.StringIO(), width=30)
    print_whole(whole, table(6))
    assert "\u2026" not in whole.file.getvalue() and "100,000" in whole.file.getvalue().splitlines()[1]
    wide = Console(file=io.StringIO(), width=120)
    print_whole(wide, table(6))
    assert wide.file.getvalue() == whole.file.getvalue() and (whole.width, wide.width) == (30, 120)


def test_what_a_console_leaves_as_it_is_stays_in_a_table_that_runs_on():
    one = Table("of a name as [bold]long[/] as this")
    one.add_row(":smile: [red]1[/]")
    plain = Console(file=io.StringIO(), width=10, markup=False, emoji=False)
    print_whole(plain, one)
    assert "[bold]long[/]" in plain.file.getvalue() and ":smile: [red]1[/]" in plain.file.getvalue()


def test_no_number_of_a_run_is_cut_on_a_narrow_terminal(monkeypatch, capsys):
    from dynadapt.commands import reweight

    monkeypatch.setenv("COLUMNS", "40")
    by_domain = {
        "tokens_by_domain": 1_234_567,
        "epochs": 1.25,
        "weights": 0.5,
        "static_weights": 0.5,
        "heldout": 10.1234,
        "heldout_start": 12.0,
    }
    summary = {name: {"debian-handbook": value} for name, value in by_domain.items()}
    with pytest.raises(KeyError):  # of what stands behind the table
        reweight._print_summary({**summary, "mean": 10.1234, "mean_start": 12.0, "tokens": 1_234_567})
    shown = capsys.readouterr().out
    assert "\u2026" not in shown and "1,234,567" in shown and "debian-handbook" in shown and "-1.8766" in shown


def test_names_fold_before_a_table_runs_on():
    found = Table(box=None)
    found.add_column("run", overflow="fold")
    found.add_column("loss", no_wrap=True)
    found.add_column("interval", no_wrap=True)
    found.add_row("a-name-of-thirty-four-characters-x", "3.1234", "[-0.1234, +0.1234]")
    for width, lines in ((70, 2), (45, 4), (20, 4)):
        console = Console(file=io.StringIO(), width=width)
        print_whole(console, found)
        shown = console.file.getvalue()
        assert "[-0.1234, +0.1234]" in shown and "3.1234" in shown and len(shown.splitlines()) == lines, shown
