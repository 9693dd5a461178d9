"""Many runs, one directory each, each in a process of its own so that its peak memory is its own.

Running the same sweep again skips what is finished and goes on with what was stopped or failed. A cell that is killed (out of memory) is
a failed cell; a sweep that is killed takes its cell with it.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from dynadapt.common import children
from dynadapt.common.notes import note
from dynadapt.common.options import idle, note_idle
from dynadapt.runs.console import print_whole, table_console
from dynadapt.runs.metrics import Run, read_run
from dynadapt.runs.rundir import read_json, write_json
from dynadapt.runs.stopping import signals_to
from dynadapt.runs.tables import write_rows

from .config import ConfigError, EvalConfig

KEYS = ("out", "scores", "checkpoint", "base", "grid", "cells")


@dataclass(frozen=True)
class Cell:
    name: str
    config: EvalConfig


@dataclass(frozen=True)
class Sweep:
    """``out``: directory of the runs. ``scores``, ``checkpoint``: those options of every cell's `dynadapt eval`; None: its default."""

    out: Path
    cells: list[Cell]
    scores: bool = False
    checkpoint: int | None = None

    @property
    def options(self) -> tuple[str, ...]:
        return (("--scores",) if self.scores else ()) + (() if self.checkpoint is None else ("--checkpoint", str(self.checkpoint)))


def read_sweep(path: str | Path) -> Sweep:
    """A sweep file. Raises ConfigError naming what does not fit."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not ({"grid", "cells"} & set(content)):
        raise ConfigError(f"{path}: give base: and grid: or cells: (see dynadapt sweep --help)")
    unknown = set(content) - set(KEYS)
    if unknown:
        raise ConfigError(f"{path}: unknown key {sorted(map(str, unknown))[0]!r}; there are {', '.join(KEYS)}")
    scores, checkpoint = content.get("scores", False), content.get("checkpoint")
    if not isinstance(scores, bool):
        raise ConfigError(f"{path}: scores is {scores!r}; give true or false")
    if checkpoint is not None and (not isinstance(checkpoint, int) or isinstance(checkpoint, bool) or checkpoint < 0):
        raise ConfigError(f"{path}: checkpoint is {checkpoint!r}; give a number of segments, 0 for never")
    try:
        cells = expand(content.get("base") or {}, content.get("grid") or {}, content.get("cells") or [])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Sweep(Path(content.get("out") or Path("runs") / path.stem), cells, scores, checkpoint)


def expand(base: dict, grid: dict, cells: list[dict]) -> list[Cell]:
    """Every combination of the grid's lists, then the cells one by one, each over the base; equal ones once."""
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid: {name} is {values!r}; give a list of values")
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())] if grid else []
    if not all(isinstance(cell, dict) for cell in cells):
        raise ConfigError("cells: give a list of settings such as {adapt: lora, lr: 0.001}")
    found: dict[EvalConfig, Cell] = {}
    for changes in combinations + list(cells):
        config = EvalConfig.from_dict({"bos": "auto", **base, **changes})
        if changes in cells:
            note_idle(config, changes)
        found.setdefault(config, Cell(cell_name(changes), config))
    names = [cell.name for cell in found.values()]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"cells: two different cells would be named {twice[0]!r}")
    _note_alike(list(found.values()))
    return list(found.values())


def _note_alike(cells: list[Cell]) -> None:
    """A note for cells that compute the same, since they differ only in settings that change nothing."""
    alike: dict[EvalConfig, list[Cell]] = {}
    for cell in cells:
        usual = {name: getattr(EvalConfig, name) for name in idle(cell.config)}
        alike.setdefault(cell.config.with_(**usual), []).append(cell)
    for same in alike.values():
        if len(same) > 1:
            reasons = [
                f"{name} with {reason}"
                for name, reason in idle(same[0].config).items()
                if len({getattr(cell.config, name) for cell in same}) > 1
            ]
            note(f"cells {', '.join(cell.name for cell in same)} compute the same: without effect are {', '.join(reasons)}")


def cell_name(changes: dict) -> str:
    """For example adapt=lora,lr=0.001."""
    parts = []
    for name, value in changes.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        text = "+".join(Path(str(each).removeprefix("builtin:")).name for each in values)
        parts.append(f"{name}={''.join(c if c.isalnum() or c in '.+-:' else '_' for c in text)}".replace(":", "-"))
    return ",".join(parts) or "base"


def run_cells(cells: list[Cell], out: Path, extra: tuple[str, ...] = (), console: Console | None = None) -> dict[str, str]:
    """Runs what is not finished; returns what went wrong, by cell. Stops (KeyboardInterrupt) when this process was told to."""
    console = console or table_console(soft_wrap=True, highlight=False)
    failures = {}
    for number, cell in enumerate(cells, 1):
        path = out / cell.name
        title = f"[{number}/{len(cells)}] {cell.name}"
        # One that finished without the scores that are asked for is left to eval, which refuses it by name.
        scored = "--scores" not in extra or (path / "scores.npy").exists()
        if scored and (path / "summary.json").exists() and cell.config.matches(read_json(path / "config.json")):
            console.print(f"{title}: finished before", markup=False, style="dim")
            continue
        console.print(title, markup=False, style="bold")
        code, message = _run_child(["eval", *cell.config.arguments(), "--out", str(path), "--resume", "--quiet", *extra])
        if code:
            failures[cell.name] = message
            console.print(message, markup=False, style="red")
    return failures


def _run_child(words: list[str]) -> tuple[int, str]:
    """(exit status, what it said last or what ended it) of `dynadapt words...`. KeyboardInterrupt when this process got SIGINT or SIGTERM.

    SIGTERM is handed on; SIGINT reaches the child from the terminal by itself.
    """
    child = subprocess.Popen(
        children.command("dynadapt", *words), env=children.environment(), stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    asked = []

    def stop(number, frame):
        asked.append(number)
        if number == signal.SIGTERM:
            child.send_signal(number)

    with signals_to(stop):
        last = ""
        for line in child.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
        code = child.wait()
    if asked:
        raise KeyboardInterrupt
    return code, ended_by(-code) if code < 0 else last or f"exit status {code}"


def ended_by(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    why = "; the kernel does that when memory runs out" if number == signal.SIGKILL else ""
    return f"killed by {name}{why}. What it scored is kept, and the same command goes on with it"


def finished_runs(cells: list[Cell], out: Path) -> list[Run]:
    return [read_run(out / cell.name) for cell in cells if (out / cell.name / "summary.json").exists()]


COLUMNS = ("NLL", "bits/byte", "GFLOPs/token", "tokens/s", "peak memory")


def numbers(summary: dict) -> tuple[str, ...]:
    """Of COLUMNS."""
    bits = summary["bits_per_byte"]
    return (
        f"{summary['nll']:.4f}",
        "-" if bits is None else f"{bits:.4f}",
        f"{summary['flops_per_token'] / 1e9:.3f}",
        f"{summary['tokens_per_second']:,.0f}",
        f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB",
    )


def results_table(summaries: Mapping[str, dict | None]) -> Table:
    """A row a run by its title; None: one to come, with dots. The best NLL is bold."""
    best = min((summary["nll"] for summary in summaries.values() if summary), default=None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")  # a narrow terminal folds names, never numbers
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True, min_width=len(title))
    for title, summary in summaries.items():
        cells = numbers(summary) if summary else ["\u00b7"] * len(COLUMNS)
        table.add_row(title, *cells, style="dim" if not summary else "bold" if summary["nll"] == best else None)
    return table


def write_results(runs: list[Run], json_path: Path, csv_path: Path) -> None:
    write_json(json_path, {"runs": [{"name": run.name, "config": run.config, "summary": run.summary} for run in runs]})
    names = [
        "nll",
        "bits_per_byte",
        "perplexity",
        "tokens",
        "bytes",
        "seconds",
        "tokens_per_second",
        "flops_per_token",
        "peak_memory_bytes",
        "learned_parameters",
        "updates",
        "skipped_updates",
    ]
    keys = list(dict.fromkeys(key for run in runs for key in run.config))  # a config.json leaves out what nobody set
    whole = {run.name: {**vars(EvalConfig.from_dict(run.config)), **run.config} for run in runs}
    rows = ([run.name, *(whole[run.name][key] for key in keys), *(run.summary[name] for name in names)] for run in runs)
    write_rows(csv_path, ["name", *keys, *names], rows)


def run_sweep(path: str, scores: bool = False, checkpoint: int | None = None, log: Sequence[str] = ()) -> int:
    """Runs what the file says. scores, checkpoint: in place of the file's, where given. log: names of logs that every cell's lines of
    metrics go to."""
    sweep = read_sweep(path)
    sweep = replace(sweep, scores=scores or sweep.scores, checkpoint=sweep.checkpoint if checkpoint is None else checkpoint)
    out, cells = sweep.out, sweep.cells
    try:
        failures = run_cells(cells, out, sweep.options + tuple(word for name in log for word in ("--log", name)))
    except KeyboardInterrupt:
        words = [path, *(["--scores"] if scores else []), *([] if checkpoint is None else ["--checkpoint", str(checkpoint)])]
        print(f"dynadapt: sweep stopped; the same command goes on: dynadapt sweep {' '.join(words)}", file=sys.stderr)
        return 130
    runs = finished_runs(cells, out)
    if runs:
        write_results(runs, out / "sweep.json", out / "sweep.csv")
        print_whole(table_console(), results_table({run.name: run.summary for run in runs}))
        print(f"{out / 'sweep.json'}\n{out / 'sweep.csv'}")
    for name, message in failures.items():
        print(f"dynadapt: cell {name} failed: {message}", file=sys.stderr)
    return 1 if failures else 0
