"""Reading what runs wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dynadapt.experiments.rundir import RunError, check_finished, read_json


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; a last line cut by a kill is left out."""
    path = Path(path) / "metrics.jsonl"
    lines = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    raise RunError(f"{path}: line {number} is not JSON") from None
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; {path.parent} is not a run's directory") from None
    return lines


@dataclass(frozen=True)
class Run:
    """One run as its files tell it. `summary` is None while it is unfinished."""

    path: Path
    config: dict
    summary: dict | None
    metrics: list[dict]

    @property
    def name(self) -> str:
        return self.path.name


def read_run(path: str | Path) -> Run:
    """RunError names a file that a finished run did not leave like this."""
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run directory")
    summary = read_json(path / "summary.json") if (path / "summary.json").exists() else None
    if summary is not None:
        check_finished(path, summary)
    return Run(path, read_json(path / "config.json"), summary, read_metrics(path))
