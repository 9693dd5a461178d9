"""A run's directory: config.json, env.json, metrics.jsonl, summary.json, scores.npy, checkpoint/.

A process may be killed at any instruction. metrics.jsonl and scores.npy only grow; a checkpoint remembers how long they
were, and resuming cuts them back to that. Checkpoints are written beside the last one and renamed, so that one is always
whole. summary.json is written last: a run that has it is finished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np

SCORE = np.dtype([("document", "<i4"), ("position", "<i4"), ("nll", "<f4")])


class RunError(RuntimeError):
    """A run that can't start or go on; the message says what to do."""


class DiskError(RunError):
    """Writing failed; everything before is kept."""


def read_json(path: Path) -> dict:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON ({error})") from None


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w") as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> DiskError:
    reason = "no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return DiskError(f"{path}: can't write: {reason}. What was scored so far is kept; make room and run again with --resume")


def differing(old: dict, new: dict) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} is {old.get(key)!r} there and {new.get(key)!r} here" for key in keys)


class RunDirectory:
    """Opens or resumes runs/NAME. Raises RunError when it holds something else.

    `finished`: the summary of a finished run, else None.   `state`: what the last checkpoint holds, else None.
    """

    def __init__(self, path: str | Path, config: dict, resume: bool, scores: bool):
        self.path = Path(path)
        self._open(config, resume)
        self.finished = read_json(self.path / "summary.json") if (self.path / "summary.json").exists() else None
        if self.finished and not resume:
            raise RunError(f"{self.path} holds this run, finished; read {self.path / 'summary.json'}, or choose another --out")
        self.checkpoint, self.state = self._last_checkpoint()
        if not self.finished:
            self.metrics = _Growing(self.path / "metrics.jsonl", (self.state or {}).get("metrics_bytes", 0))
            self.scores = Scores(self.path / "scores.npy", (self.state or {}).get("scores", 0)) if scores else None

    def _open(self, config: dict, resume: bool) -> None:
        path = self.path / "config.json"
        known = path.exists()
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; --out names a directory")
        if not known:
            if self.path.exists() and any(self.path.iterdir()):
                raise RunError(f"{self.path} is not empty and holds no run (no config.json); choose another --out")
            self._create(path, config)
        elif (difference := differing(read_json(path), config)):
            raise RunError(f"{self.path} holds a run with another configuration: {difference}; choose another --out")
        self._lock = open(path)                      # held while this object lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{self.path} is being written by another process; wait for it, or choose another --out") from None
        if known and not resume and not (self.path / "summary.json").exists():
            raise RunError(f"{self.path} holds this run, unfinished; add --resume to go on with it, or choose another --out")

    def _create(self, path: Path, config: dict) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: can't make this directory: {error.strerror}") from None
        write_json(path, config)

    def _last_checkpoint(self) -> tuple[Path | None, dict | None]:
        folder = self.path / "checkpoint"
        whole = sorted(entry for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []
        return (whole[-1], read_json(whole[-1] / "state.json")) if whole else (None, None)

    def save(self, engine, state: dict) -> None:
        """Writes checkpoint/NNNNNNNN, then removes the one before."""
        folder = self.path / "checkpoint"
        target = folder / f"{state['segments']:08d}"
        temporary = folder / f".{target.name}.tmp"
        try:
            self.sync()
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            engine.save(temporary / "engine")
            state = {**state, "metrics_bytes": self.metrics.size, "scores": self.scores.count if self.scores else 0}
            write_json(temporary / "state.json", state)
            sync_tree(temporary)
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        except Exception as error:
            cause = _os_error(error, folder)
            shutil.rmtree(temporary, ignore_errors=True)
            if cause is None:
                raise
            raise disk_error(cause, target) from error
        for entry in folder.iterdir():
            if entry != target:
                shutil.rmtree(entry, ignore_errors=True)
        self.checkpoint, self.state = target, state

    def append(self, line: dict) -> None:
        try:
            self.metrics.append((json.dumps(line, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise disk_error(error, self.path / "metrics.jsonl") from error

    def append_scores(self, rows: np.ndarray) -> None:
        try:
            self.scores.append(rows)
        except OSError as error:
            raise disk_error(error, self.path / "scores.npy") from error

    def sync(self) -> None:
        os.fsync(self.metrics.file.fileno())
        if self.scores:
            os.fsync(self.scores.growing.file.fileno())

    def close(self) -> None:
        if not self.finished:
            self.metrics.file.close()
            if self.scores:
                self.scores.growing.file.close()
        self._lock.close()


class Follower:
    """A run's directory as a process sees it that writes nothing: another one, of the same run, does (dynadapt/distributed)."""

    scores = None

    def __init__(self, path: Path, finished: dict | None, checkpoint: Path | None, state: dict | None):
        self.path, self.finished, self.checkpoint, self.state = path, finished, checkpoint, state

    def save(self, engine, state: dict) -> None:
        self.state = state

    def append(self, line: dict) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_directory(processes, path: str | Path, config: dict, resume: bool, scores: bool) -> RunDirectory | Follower:
    """The run directory on the first process, a Follower of it on the others, which raise ProcessError for its RunError."""
    directory = None

    def open_it():
        nonlocal directory
        directory = RunDirectory(path, config, resume, scores)
        return directory.finished, directory.checkpoint, directory.state
    known = processes.from_first(open_it)
    return directory or Follower(Path(path), *known)


class _Growing:
    """A file that is appended to in whole records; a record that doesn't fit is taken back."""

    def __init__(self, path: Path, size: int):
        self.file = open(path, "r+b" if path.exists() else "w+b", buffering=0)
        self.file.truncate(size)
        self.file.seek(size)
        self.size = size

    def append(self, record: bytes) -> None:
        try:
            written = 0
            while written < len(record):
                written += self.file.write(record[written:])
        except OSError:
            self.file.truncate(self.size)
            self.file.seek(self.size)
            raise
        self.size += len(record)

    def overwrite(self, start: int, record: bytes) -> None:
        self.file.seek(start)
        self.file.write(record)
        self.file.seek(self.size)


class Scores:
    """scores.npy: one (document, position, nll) row per scored token, readable by numpy.load at any time."""

    HEADER = 128

    def __init__(self, path: Path, count: int):
        self.count = count
        self.growing = _Growing(path, self.HEADER + count * SCORE.itemsize if count else 0)
        if not count:
            self.growing.append(self._header(0))
        self.growing.overwrite(0, self._header(count))

    def append(self, rows: np.ndarray) -> None:
        self.growing.append(rows.astype(SCORE).tobytes())
        self.count += len(rows)
        self.growing.overwrite(0, self._header(self.count))

    def _header(self, count: int) -> bytes:
        text = repr({"descr": SCORE.descr, "fortran_order": False, "shape": (count,)})
        return b"\x93NUMPY\x01\x00" + (self.HEADER - 10).to_bytes(2, "little") + text.encode().ljust(self.HEADER - 11) + b"\n"


def sync_tree(folder: Path, deep: bool = True) -> None:
    """To disk: files and directories of a tree, or with ``deep`` off the names in one directory alone."""
    for entry in [*(folder.rglob("*") if deep else ()), folder]:
        number = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _os_error(error: BaseException, folder: Path) -> OSError | None:
    """The OSError behind an exception. Libraries that write tensors report a full disk in words of their own."""
    full = shutil.disk_usage(folder if folder.exists() else folder.parent).free < 1 << 16
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return OSError(errno.ENOSPC, "no space left") if full else None
