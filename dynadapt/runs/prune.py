"""Removing what no run needs: runs in which nothing was scored, and checkpoints that nothing reads any more.

What is removed is locked first and looked at again under the lock, so that a run that begins or goes on in the meantime is left alone.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .checkpoints import saved_states
from .find import DEPTH, Row, disk_use, find_runs, row_of
from .rundir import BEGINNING, UNSCORED, holds_only, nothing_scored, unscored
from .whole_files import RunError, os_error, read_json

OF_DIAGNOSIS = ("texts-newlines", "texts-packing")


@dataclass(frozen=True)
class Removal:
    """A directory to be removed, why, and what that frees. `run` is the run whose lock is held meanwhile."""

    path: Path
    run: Path
    why: str
    bytes: int


def removable(root: str | Path, checkpoints: bool = False, depth: int = DEPTH) -> tuple[list[Removal], dict[str, list[Path]]]:
    """(what would go, {why it stays: what stays}) under a directory. Nothing is touched."""
    found, stays = [], {}
    for row in find_runs(root, depth):
        if row.state == "failed":
            if _only_own(row):
                found.append(Removal(row.path, row.path, "nothing was scored", row.bytes))
            else:
                stays.setdefault("nothing was scored, but it holds files of others", []).append(row.path)
        elif checkpoints and row.state == "finished":
            for run in (row.path, *row.parts):
                _look_at_checkpoint(run, row if run == row.path else row_of(run), found, stays)
    return found, stays


def _only_own(row: Row) -> bool:
    """Whether a failed run's directory holds what a beginning run makes and nothing else."""
    if not row.parts:
        return nothing_scored(row.path)
    own = (*BEGINNING, *UNSCORED, *OF_DIAGNOSIS, *(part.name for part in row.parts))
    return unscored(row.path) and holds_only(row.path, own) and all(map(nothing_scored, row.parts))


def _look_at_checkpoint(run: Path, row: Row, found: list[Removal], stays: dict[str, list[Path]]) -> None:
    folder = run / "checkpoint"
    if folder.is_symlink() or not folder.is_dir():
        return
    why = still_read(run, row.kind) if row.state == "finished" else f"the run is {row.state}"
    if why:
        stays.setdefault(why, []).append(folder)
    else:
        found.append(Removal(folder, run, "the run is finished, and nothing reads its state", disk_use(folder)[0]))


def still_read(run: Path, kind: str) -> str | None:
    """What still needs the last state of a finished run; None when nothing does."""
    config = read_json(run / "config.json")
    if kind == "icl":
        states = [int(state.name.partition("-")[0]) for state in saved_states(run)]
        kept = [int(path.stem) for path in (run / "weights").glob("*.safetensors") if path.stem.isdigit()]
        return None if states and max(states) in kept else "dynadapt icl eval reads the weights that are in it"
    if kind == "reweight":
        return "export, and doremi's --reference, read what was learned from it"
    if config.get("adapt") == "lora":
        return "export and publish read the adapter from it"
    return None


def remove(removal: Removal) -> int:
    """Removes it, if it still is what it was; returns the bytes that became free. RunError, naming it, when it is not or can't be."""
    with _held(removal.run):
        whole = removal.path == removal.run
        row = row_of(removal.run)
        if whole and not _only_own(row) or not whole and row.state != "finished":
            raise RunError(f"{removal.path}: something was written there in the meantime; left as it is")
        try:
            shutil.rmtree(removal.path)
        except OSError as error:
            cause = os_error(error, removal.path.parent) or error
            raise RunError(f"{removal.path}: can't be removed: {cause.strerror or cause}") from error
    return removal.bytes


@contextmanager
def _held(run: Path) -> Iterator[None]:
    """The lock of a run, as the process that writes there would hold it; a run that never had one is nobody's."""
    try:
        file = open(run / ".lock", "rb")
    except FileNotFoundError:
        file = None
    except OSError as error:
        raise RunError(f"{run}: can't be locked: {error.strerror}; left as it is") from None
    try:
        if file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"{run} is being written by another process; left as it is") from None
    finally:
        if file:
            file.close()
