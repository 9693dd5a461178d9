"""Runs as tests break them off and compare them: what kills one, what it kept."""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file


class Killed(BaseException):
    """What a callback raises in the place of a signal that nobody can handle."""


def kill_at(**wanted):
    """A callback that kills the run at the first event, or line of metrics, with these values."""

    def progress(event):
        if all(event.get(name) == value for name, value in wanted.items()):
            raise Killed

    return progress


def scores_of(out) -> np.ndarray:
    return np.load(Path(out) / "scores.npy")


def without_time(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in ("seconds", "total_seconds")} for line in lines]


def final_state(out) -> dict:
    return load_file(max((Path(out) / "checkpoint").iterdir()) / "engine" / "state.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a tree but locks, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
