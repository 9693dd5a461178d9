"""`--log NAME`: every line of metrics.jsonl, as it is written, to Weights & Biases, Trackio or TensorBoard as well.

metrics.jsonl stays the record; a log is a view of it. One that fails in the middle of a run is given up with a note, and the run goes
on. A run that is resumed shows the log its earlier lines first, so that each log is whole whichever process wrote it.

A line's step is its `total_tokens` where it has them, else its `step`. Series are named after the line's keys:
  a number, true or false      key                        nll, total_bits_per_byte, seconds
  an entry of a dictionary     key/entry                  flops/forward, weights/code
  a list of numbers            key: their mean; and key/0, key/1, ... where there are 2 to 16   stream_nll, grad_norm
  a list of true and false     key: how many are true     updated, skipped, reset
Lists of anything else, document numbers, lengths and places of rows are left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from dynadapt.common.errors import ConfigError

from .append_only import read_metrics
from .whole_files import RunError, note, read_json, read_json_or, write_json

IDS = "log.json"  # in a run's directory: what its logs know it by
LEFT_OUT = ("documents", "lengths", "segment", "step")
MANY = 16  # of more numbers than this in a list, only the mean is shown
PROJECT = "dynadapt"


class Log:
    """One kind of log. `start` is the first step that it does not have yet."""

    package: str
    start = 0

    def open(self, path: Path, config: dict) -> None:
        raise NotImplementedError

    def line(self, series: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def finish(self, summary: dict[str, float], step: int) -> None:
        """A finished run's numbers, after its last line."""
        raise NotImplementedError

    def close(self, finished: bool) -> None:
        raise NotImplementedError


class TensorBoard(Log):
    """Event files in OUT/tensorboard, made anew by each process from what metrics.jsonl holds."""

    package = "tensorboard"

    def open(self, path, config):
        from torch.utils.tensorboard import SummaryWriter

        folder = path / "tensorboard"
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.writer = SummaryWriter(str(folder))
        self.writer.add_text("config", "```json\n" + json.dumps(config, indent=2) + "\n```")

    def line(self, series, step):
        for name, value in series.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, summary, step):
        for name, value in summary.items():
            self.writer.add_scalar(f"summary/{name}", value, step)

    def close(self, finished):
        self.writer.close()


class WandB(Log):
    """A run of Weights & Biases, with its files in OUT/wandb; WANDB_MODE, WANDB_PROJECT, WANDB_DIR and the like are its own."""

    package = "wandb"

    def open(self, path, config):
        import wandb

        ours = {
            "name": ("WANDB_NAME", path.name),
            "project": ("WANDB_PROJECT", PROJECT),
            "group": ("WANDB_RUN_GROUP", _group(path)),
            "dir": ("WANDB_DIR", str(path)),
            "id": ("WANDB_RUN_ID", _run_id(path, "wandb")),
        }
        ours = {key: value for key, (variable, value) in ours.items() if not os.environ.get(variable)}
        self.run = wandb.init(**ours, resume="allow", reinit="create_new", config=config, settings=wandb.Settings(console="off"))
        self.start = self.run.step if self.run.resumed and not self.run.offline else 0

    def line(self, series, step):
        self.run.log(series, step=step)

    def finish(self, summary, step):
        self.run.summary.update({f"summary/{name}": value for name, value in summary.items()})

    def close(self, finished):
        self.run.finish(exit_code=0 if finished else 1)


class Trackio(Log):
    """A run of Trackio. A local one is made anew by each process from what metrics.jsonl holds; one on a Space or a server, where
    nothing is taken back, is a run of its own for each process."""

    package = "trackio"

    def open(self, path, config):
        import trackio

        remote = any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = f"{path.name}-{secrets.token_hex(4) if remote else _run_id(path, 'trackio')}"
        with redirect_stdout(sys.stderr):  # what it says is no result of the command
            try:
                before = [] if remote else [run for run in trackio.Api().runs(project) if run.name == name]
            except ValueError:  # no such project yet
                before = []
            for run in before:
                run.delete()
            self.run = trackio.init(project=project, name=name, group=_group(path), config=config, embed=False)

    def line(self, series, step):
        self.run.log(series, step=step)

    def finish(self, summary, step):
        self.run.log({f"summary/{name}": value for name, value in summary.items()}, step=step)

    def close(self, finished):
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()


HINTS = {"wandb": "; log in with `wandb login`, or set WANDB_MODE=offline"}
LOGS: dict[str, type[Log]] = {"wandb": WandB, "trackio": Trackio, "tensorboard": TensorBoard}


def check_logs(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. ConfigError for one that is none, or whose package is not installed."""
    for name in names:
        if name not in LOGS:
            raise ConfigError(f"log {name!r}: give {', '.join(LOGS)}")
        found = importlib.util.find_spec(LOGS[name].package)
        if found is None or found.origin is None:  # a folder of that name, such as ./wandb, is found as a package without one
            raise ConfigError(f"log {name!r}: the package {LOGS[name].package} is not installed: pip install {LOGS[name].package}")
    return tuple(dict.fromkeys(names))


def open_logs(names: Sequence[str], path: Path, config: dict, earlier: Iterable[dict] = ()) -> Logs:
    """The logs of the run in `path`, which have the lines of `earlier` when this returns. RunError where one can't be opened."""
    opened: dict[str, Log] = {}
    for name in check_logs(names):
        log = LOGS[name]()
        try:
            log.open(Path(path).resolve(), config)
        except Exception as error:
            Logs(opened).close()
            said = " ".join(str(error).split()) or type(error).__name__
            raise RunError(f"log {name!r} can't be opened: {said}{HINTS.get(name, '')}") from error
        opened[name] = log
    logs = Logs(opened)
    if opened:
        for line in earlier:
            logs.line(line)
    return logs


def show_finished(names: Sequence[str], path: Path, config: dict, summary: dict) -> None:
    """The lines and the summary of a run that is finished, to logs that may not have seen it."""
    lines = read_metrics(path) if names and (Path(path) / "metrics.jsonl").exists() else []
    logs = open_logs(names, path, config, lines)
    logs.finish(summary)
    logs.close()


class Logs:
    """Some logs as one, none of which can harm the run that it shows."""

    def __init__(self, opened: dict[str, Log]):
        self.opened, self.finished, self.step = opened, False, 0

    def line(self, line: dict) -> None:
        """A line of metrics.jsonl."""
        if not self.opened:
            return
        self.step = step = step_of(line)
        series = series_of(line)
        self._each(lambda log: log.line(series, step) if step >= log.start else None)

    def finish(self, summary: dict) -> None:
        """The content of summary.json."""
        series = {name: value for name, value in series_of(summary).items() if not name.startswith("files/")}
        self._each(lambda log: log.finish(series, self.step))
        self.finished = True

    def close(self) -> None:
        self._each(lambda log: log.close(self.finished))
        self.opened = {}

    def _each(self, action) -> None:
        for name, log in list(self.opened.items()):
            try:
                action(log)
            except (Exception, SystemExit) as error:  # whatever it was, the run is worth more
                del self.opened[name]
                note(f"log {name!r} failed and is given up, the run goes on: {type(error).__name__}: {' '.join(str(error).split())}")


def step_of(line: dict) -> int:
    return int(line["total_tokens"] if "total_tokens" in line else line["step"])


def series_of(line: dict) -> dict[str, float]:
    """The numbers of a line by the name of their series, as the head of this file says."""
    series: dict[str, float] = {}
    for key, value in line.items():
        if key not in LEFT_OUT:
            series.update(_series(key, value))
    return series


def _series(name: str, value) -> dict[str, float]:
    if isinstance(value, (bool, int, float)):
        return {name: float(value) if isinstance(value, float) else int(value)}
    if isinstance(value, dict):
        return {found: number for key, entry in value.items() for found, number in _series(f"{name}/{key}", entry).items()}
    if not isinstance(value, (list, tuple)) or not value:
        return {}
    if all(isinstance(entry, bool) for entry in value):
        return {name: sum(value)}
    if not all(entry is None or isinstance(entry, (int, float)) for entry in value):
        return {}
    known = {index: entry for index, entry in enumerate(value) if entry is not None}
    if not known:
        return {}
    each = {f"{name}/{index}": float(entry) for index, entry in known.items()} if 1 < len(value) <= MANY else {}
    return {name: sum(known.values()) / len(known), **each}


def _group(path: Path) -> str | None:
    """A sweep's cells and a diagnosis's scorings stand together under the name of the directory that holds them."""
    return None if path.parent.name in ("", "runs") else path.parent.name


def _run_id(path: Path, name: str) -> str:
    """What this log knows the run by: the same for every process that goes on with it."""
    file = path / IDS
    known = read_json_or(file, {})
    if name not in known:
        write_json(file, {**known, name: secrets.token_hex(4)})
        known = read_json(file)
    return known[name]
