"""A run's directory.

  config.json       what the run computes; written last of what begins a run, so a directory that has it was begun
  inputs.json       digests of what its numbers depend on: texts, model, tokenizer, ...
  env.json          machine and installation; under "earlier" those of the parts of it that were made elsewhere
  metrics.jsonl     a line a segment or step          scores.npy  a row a scored token (append_only.py)
  checkpoint/       the last saved state (checkpoints.py)
  log.json, wandb/, tensorboard/   with --log: what its logs know it by, and what they keep here (logs.py)
  summary.json      written last: a run that has it is finished; the digests of the two files above are in it
  .lock             held by the process that writes here

A process may be killed at any instruction, and any write may fail. metrics.jsonl and scores.npy only grow; a checkpoint has their
lengths and digests, and resuming refuses them by name if they are shorter or others, and cuts them back to that length.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dynadapt.common.digests import sync_tree
from dynadapt.common.environment import environment

from .append_only import SCORE, Metrics, Scores, check_columns, header_bytes, read_metrics, verified
from .checkpoints import keep_only, newest_whole, saved_states, write_state
from .logs import Logs, check_logs, open_logs, show_finished
from .whole_files import DiskError, RunError, RunNote, disk_error, note, os_error, read_json, read_json_or, write_json

__all__ = [
    "SCORE",
    "DiskError",
    "Follower",
    "RunDirectory",
    "RunError",
    "RunNote",
    "Scores",
    "check_finished",
    "disk_error",
    "open_directory",
    "read_json",
    "sync_tree",
    "write_json",
]
FIRST = ("env.json", "inputs.json", "config.json")
BEGINNING = (".lock", *FIRST, *(f"{name}.tmp" for name in FIRST))  # what a run that is being begun may have
UNSCORED = (
    "metrics.jsonl",
    "scores.npy",
    "checkpoint",
    "texts",
    "log.json",
    "log.json.tmp",
    "wandb",
    "tensorboard",
)  # and one in which nothing was scored
ROW_BEFORE = 12  # bytes of a row of scores.npy in runs whose checkpoints have no digests
VARYING = ("memory_bytes", "cores", "system", "folder")  # of env.json, on which no number depends


def differing(old: dict, new: dict, within: str = "") -> str:
    """Each setting that differs, by its own name where it stands among others ("domains.law"; those of "run" are a search's like its own)."""
    found = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += filter(None, [differing(a, b, "" if key == "run" else f"{within}{key}.")])
        elif a != b:
            found.append(f"{within}{key} is {a!r} there and {b!r} here")
    return "; ".join(found)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def holds_only(folder: Path, names: tuple[str, ...]) -> bool:
    return all(entry.name in names for entry in folder.iterdir())


def unscored(run: Path) -> bool:
    """Whether nothing that a run makes is here."""
    return not size_of(run / "metrics.jsonl") and size_of(run / "scores.npy") <= Scores.HEADER and not saved_states(run)


def nothing_scored(run: Path) -> bool:
    """Whether a run was begun here, or not even that, and nothing was made yet; nor is anything else here."""
    return unscored(run) and holds_only(run, BEGINNING + UNSCORED)


def take_lock(file, tries: int = 5) -> None:
    """Locks an open .lock for its process alone. BlockingIOError where another holds it for longer than a look at it takes (locked)."""
    for left in reversed(range(tries)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.01)


def locked(run: Path) -> bool:
    """Whether a process writes in this run's directory. It is looked at by a shared lock, for an instant."""
    try:
        with open(run / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class RunDirectory:
    """Opens or resumes runs/NAME. Raises RunError when it holds something else.

    1. The constructor looks, writes nothing but a lock into a directory that is there, and refuses what can't go on.
       `finished`: the summary of a finished run, else None.   `state`: what the newest whole checkpoint holds, else None.
    2. `expect(inputs)` compares what the numbers depend on with what the run was begun with.
    3. `begin()`, when nothing else can fail: makes the directory, or cuts the files back to the checkpoint.

    A directory in which nothing was scored yet is begun anew, whatever run it was begun for. `log`: names of logs that see every line.
    `may_change`: settings that a run may go on with others of; config.json keeps those that it was begun with.
    """

    def __init__(
        self, path: str | Path, config: dict, resume: bool, scores: bool, log: Sequence[str] = (), may_change: tuple[str, ...] = ()
    ):
        self.path, self.config, self.resume, self.keep_scores = Path(path), config, resume, scores
        self._may_change = may_change
        self.finished = self.checkpoint = self.state = self.inputs = self.metrics = self.scores = self._lock = None
        self._expected, self._legacy, self._made = {}, False, False
        self._log_names, self._logs = check_logs(log), Logs({})
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; --out names a directory")
        try:
            if self.path.exists():
                self._look()
            if self.finished:
                show_finished(self._log_names, self.path, config, self.finished)
        except BaseException:
            self.close()
            raise

    # ---- looking

    def _look(self) -> None:
        if self._is_finished():
            return self._look_at_finished()
        self._refuse_others()  # before a lock is made in what is another's
        self._take_lock()
        if self._is_finished():  # in the meantime
            return self._look_at_finished()
        if self._refuse_others():
            return
        if not self.resume:
            raise RunError(f"{self.path} holds this run, unfinished; add --resume to go on with it, or choose another --out")
        self.inputs = read_json_or(self.path / "inputs.json")
        self.checkpoint, self.state = newest_whole(self.path, also=self._check_growing)
        self._legacy = self.inputs is None
        if self.state is None and size_of(self.path / "metrics.jsonl"):
            note(f"{self.path} has no checkpoint: it starts over")
        if self._legacy:
            note(f"{self.path} was begun by a version that kept no digests of texts and model: they are taken to be the same")

    def _is_finished(self) -> bool:
        return (self.path / "summary.json").exists() and (self.path / "config.json").exists()

    def _refuse_others(self) -> bool:
        """Whether nothing was scored here; RunError for another run, or what is none."""
        if not (self.path / "config.json").exists() and not holds_only(self.path, BEGINNING):
            raise RunError(f"{self.path} is not empty and holds no run (no config.json); choose another --out")
        if nothing_scored(self.path):
            return True
        self._compare_configuration()
        return False

    def _look_at_finished(self) -> None:
        self._compare_configuration()
        try:
            self.finished = read_json(self.path / "summary.json")
        except RunError as error:
            raise RunError(f"{error}; everything else is kept: remove it, and --resume writes it again") from None
        if not self.resume:
            raise RunError(f"{self.path} holds this run, finished; read {self.path / 'summary.json'}, or choose another --out")
        check_finished(self.path, self.finished)
        self.inputs = read_json_or(self.path / "inputs.json")
        if self.keep_scores and not (self.path / "scores.npy").exists():
            raise RunError(f"{self.path} holds this run, finished without scores; leave out --scores, or choose another --out")

    def _compare_configuration(self) -> None:
        old, new = ({k: v for k, v in c.items() if k not in self._may_change} for c in (read_json(self.path / "config.json"), self.config))
        if difference := differing(old, new):
            raise RunError(f"{self.path} holds a run with another configuration: {difference}; choose another --out")

    def _take_lock(self) -> None:
        try:
            lock = open(self.path / ".lock", "ab")
        except OSError as error:
            raise RunError(f"{self.path}: can't write there: {error.strerror}; choose another --out") from None
        try:
            take_lock(lock)
            self._lock = lock
        except BlockingIOError:
            lock.close()
            raise RunError(f"{self.path} is being written by another process; wait for it, or choose another --out") from None
        except OSError as error:
            lock.close()
            raise RunError(
                f"{self.path}: can't be locked ({error.strerror}), so that two processes might write there; choose an "
                "--out on another file system"
            ) from None

    def _check_growing(self, state: dict) -> None:
        """RunError where metrics.jsonl or scores.npy is not what a checkpoint saw."""
        metrics, scores = _growing_records(state)
        verified(self.path / "metrics.jsonl", metrics)
        if scores is not None:
            verified(self.path / "scores.npy", scores, header_bytes(self.path / "scores.npy"))
            check_columns(self.path / "scores.npy")

    # ---- beginning

    def expect(self, inputs: Mapping[str, object]) -> None:
        """Refuses by name what has changed since the run began. Values are plain data; None: not known here."""
        self._expected = {**self._expected, **inputs}
        for name, value in inputs.items():
            known = (self.inputs or {}).get(name)
            if None not in (known, value) and known != value:
                raise RunError(f"{name} has changed since this run began ({self.path}); put it back, or choose another --out")

    def begin(self, **facts) -> None:
        """From here on it is this run's. `facts` go into env.json."""
        if self.state is not None or self.inputs is not None:
            self._expect_scores()
        try:
            if self._lock is None:
                self._make()
            self._write_first(facts)
            if self.checkpoint == (saved_states(self.path) or [None])[-1] is not None:
                self.checkpoint = keep_only(self.path, self.checkpoint)  # what a killed process had no time for
            metrics, scores = _growing_records(self.state) if self.state else (None, None)
            self.metrics = Metrics(self.path / "metrics.jsonl", metrics)
            self.scores = Scores(self.path / "scores.npy", scores) if self.keep_scores else None
            sync_tree(self.path, deep=False)
        except OSError as error:
            raise RunError(f"{self.path}: can't write there: {error.strerror or error}") from error
        self._logs = open_logs(self._log_names, self.path, self.config, self._lines())

    def _lines(self) -> list[dict]:
        return read_metrics(self.path) if self._log_names else []

    def _expect_scores(self) -> None:
        """A run has the scores of all its tokens, or none."""
        known = (self.inputs or {}).get("scores")
        if known is None and self.state:
            known = _growing_records(self.state)[1] is not None
        if known is not None and known != self.keep_scores:
            raise RunError(f"{self.path} was begun {'with' if known else 'without'} --scores; go on {'with' if known else 'without'} it")

    def _make(self) -> None:
        missing = [parent for parent in (self.path, *self.path.parents) if not parent.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: can't make this directory: {error.strerror}") from None
        for made in missing:
            sync_tree(made.parent, deep=False)
        self._made = bool(missing)
        self._take_lock()
        if not nothing_scored(self.path):
            raise RunError(f"{self.path} was begun by another process in the meantime; choose another --out")

    def _write_first(self, facts: dict) -> None:
        here = {**environment(), **facts}
        if (self.path / "env.json").exists() and self.state:
            here = _with_earlier(here, read_json(self.path / "env.json"), self.state["segments"], self.path)
        write_json(self.path / "env.json", here)
        if self.state is None or self._legacy:
            write_json(self.path / "inputs.json", {**self._expected, "scores": self.keep_scores})
        if self.state is None:
            write_json(self.path / "config.json", self.config)

    # ---- writing

    def save(self, engine, state: dict) -> None:
        """Writes checkpoint/NNNNNNNN, whole and named before the one before goes."""
        try:
            self.sync()
            seen = {"metrics": self.metrics.growing.record(), "scores": self.scores.growing.record() if self.scores else None}
            self.checkpoint = write_state(
                self.path, state["segments"], lambda folder: engine.save(folder / "engine"), {**state, "seen": seen}
            )
        except Exception as error:
            cause = os_error(error, self.path)
            if cause is None:
                raise
            raise disk_error(cause, self.path / "checkpoint" / f"{state['segments']:08d}") from error
        self.state = {**state, "seen": seen}

    def append(self, line: dict) -> None:
        try:
            self.metrics.append(line)
        except OSError as error:
            raise disk_error(error, self.path / "metrics.jsonl") from error
        self._logs.line(line)

    def append_scores(self, rows: np.ndarray) -> None:
        try:
            self.scores.append(rows)
        except OSError as error:
            raise disk_error(error, self.path / "scores.npy") from error

    def sync(self) -> None:
        for part in (self.metrics, self.scores):
            if part:
                part.growing.sync()

    def finish(self, summary: dict) -> dict:
        """Writes summary.json, after everything else is on the disk; returns it as written."""
        try:
            self.sync()
        except OSError as error:
            raise disk_error(error, self.path / "metrics.jsonl") from error
        if self.checkpoint:
            self.checkpoint = keep_only(self.path, self.checkpoint)
        files = {"metrics.jsonl": self.metrics.growing.record()}
        if self.scores:
            files["scores.npy"] = self.scores.growing.record()
        summary = {**summary, "files": files}
        write_json(self.path / "summary.json", summary)
        self._logs.finish(summary)
        return summary

    def abandon(self) -> None:
        """Removes a directory that this process made and in which nothing came to be scored."""
        if self._made and nothing_scored(self.path):
            self.close()
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        for part in (self.metrics, self.scores):
            if part:
                part.growing.close()
        if self._lock:
            self._lock.close()
        self._logs.close()


def check_finished(path: Path, summary: dict) -> None:
    """RunError, naming the file, where metrics.jsonl or scores.npy is not what the finished run wrote."""
    for name, record in summary.get("files", {}).items():
        header = header_bytes(path / name) if name == "scores.npy" else 0
        verified(path / name, record, header)
        size = (path / name).stat().st_size if record["bytes"] else 0
        if size > record["bytes"] + header:
            raise RunError(f"{path / name} has {size:,} bytes, the finished run wrote {record['bytes'] + header:,}")


def _growing_records(state: dict) -> tuple[dict, dict | None]:
    """What a checkpoint saw of metrics.jsonl and scores.npy; one without digests has their lengths."""
    if "seen" in state:
        return state["seen"]["metrics"], state["seen"]["scores"]
    count = state.get("scores", 0)
    return ({"bytes": state["metrics_bytes"], "sha256": None}, {"bytes": count * ROW_BEFORE, "sha256": None} if count else None)


def _with_earlier(here: dict, before: dict, segments: int, path: Path) -> dict:
    """env.json of a run that goes on: with the records of other machines or installations that made a part of it."""
    earlier = before.pop("earlier", [])
    if earlier and earlier[-1]["until"] >= segments:
        before = earlier.pop()  # the process after that one made nothing that is kept
        before.pop("until")
    both = [key for key in before if key in here and key not in VARYING]  # what an earlier version did not keep is not known to differ
    changed = [key for key in both if before[key] != here[key]]
    if changed:
        what = "; ".join(f"{key} was {before[key]!r} and is {here[key]!r}" for key in changed)
        note(f"{path} goes on elsewhere, where the same bits are not promised: {what}; env.json keeps both records")
        earlier = [*earlier, {**before, "until": segments}]
    return {**here, **({"earlier": earlier} if earlier else {})}


class Follower:
    """A run's directory as a process sees it that writes nothing: another one, of the same run, does (dynadapt/distributed)."""

    scores = None

    def __init__(self, path: Path, finished: dict | None, checkpoint: Path | None, state: dict | None):
        self.path, self.finished, self.checkpoint, self.state = path, finished, checkpoint, state

    def _leave_to_the_first(self, *arguments, **facts) -> None:
        """Nothing."""

    expect = begin = append = sync = abandon = close = _leave_to_the_first

    def save(self, engine, state: dict) -> None:
        self.state = state

    def finish(self, summary: dict) -> dict:
        return summary


def open_directory(
    processes, path: str | Path, config: dict, resume: bool, scores: bool, log: Sequence[str] = ()
) -> RunDirectory | Follower:
    """The run directory on the first process, a Follower of it on the others, which raise ProcessError for its RunError."""
    directory = None

    def open_it():
        nonlocal directory
        directory = RunDirectory(path, config, resume, scores, log)
        return directory.finished, directory.checkpoint, directory.state

    known = processes.from_first(open_it)
    return directory or Follower(Path(path), *known)
