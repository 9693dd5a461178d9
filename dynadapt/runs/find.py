"""The runs under a directory, each as a row: what it is, how far it is, what came out, what it takes on the disk.

A look changes nothing, and a damaged run is a row that says so. Directories are not entered through links.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from .kinds import headline, kind_of, what
from .rundir import locked, unscored
from .whole_files import RunError, finite_number, read_json

DEPTH = 6  # directories below the one that is asked about
OWN = ("checkpoint", "weights", "texts")  # of a run, in which no other run is


@dataclass(frozen=True)
class Row:
    """A run. `fraction` is how far an unfinished one is, None where that is not known; `result` is (name, value, unit) of the number
    that it is about (kinds.headline); `seconds` and `tokens` are of what it computed; `bytes` is all that it takes on the disk.
    `parts` are directories of runs that belong to this one (a diagnosis scores its texts in runs of their own)."""

    path: Path
    name: str
    kind: str
    what: str
    state: str
    why: str = ""  # what is damaged
    fraction: float | None = None
    result: tuple[str, float | None, str] = ("", None, "")
    tokens: int | None = None
    seconds: float | None = None
    date: float = 0.0  # of the last change, seconds since 1970
    bytes: int = 0
    parts: tuple[Path, ...] = ()

    def to_dict(self) -> dict:
        """Ready for JSON; `date` as ISO 8601 in UTC."""
        date = datetime.fromtimestamp(self.date, timezone.utc).isoformat(timespec="seconds")
        said = {**vars(self), "path": str(self.path), "result": dict(zip(("name", "value", "unit"), self.result)), "date": date}
        del said["parts"]
        return said


def find_runs(root: str | Path, depth: int = DEPTH) -> list[Row]:
    """The runs at `root` and up to `depth` directories below, by name. RunError where there is no such directory."""
    root = Path(root)
    if not root.is_dir():
        raise RunError(f"{root}: " + ("it is a file; name a directory of runs" if root.exists() else "no such directory"))
    return [row_of(path, root) for path in _walk(root, depth)]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    ours = is_run(folder)
    if ours:
        yield folder
    if depth < 1 or ours == "diagnose":  # whose runs are parts of it
        return
    for entry in _entries(folder):
        if not entry.name.startswith(".") and not (ours and entry.name in OWN) and entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), depth - 1)


def _entries(folder: Path) -> list[os.DirEntry]:
    """By name; none where the directory can't be read or has gone."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def is_run(folder: Path) -> str:
    """The kind of the run in a directory; "unknown" for one whose config.json is damaged or was never written; "" for no run."""
    config = folder / "config.json"
    if config.is_symlink() or not config.exists():
        return "unknown" if _was_begun(folder) else ""
    try:
        return kind_of(read_json(config)) or ""
    except RunError:
        return "unknown" if (folder / ".lock").exists() and (folder / "env.json").exists() else ""


def _was_begun(folder: Path) -> bool:
    """Whether a command was killed here between env.json and config.json."""
    try:
        return (folder / ".lock").is_file() and "dynadapt" in read_json(folder / "env.json")
    except (RunError, OSError, TypeError):
        return False


def row_of(path: Path, root: Path | None = None) -> Row:
    """The row of a run's directory."""
    kind = is_run(path)
    size, newest = disk_use(path)
    name = str(path.relative_to(root)) if root is not None and path != root else path.resolve().name
    facts = {
        "path": path,
        "name": name,
        "kind": kind,
        "what": "",
        "date": newest,
        "bytes": size,
        "parts": tuple(Path(entry.path) for entry in _entries(path) if entry.is_dir(follow_symlinks=False) and is_run(Path(entry.path)))
        if kind == "diagnose"
        else (),
    }
    try:
        if kind == "unknown" and not (path / "config.json").exists():
            return Row(**facts, state="running" if locked(path) else "failed")
        config = read_json(path / "config.json")
        facts["what"] = what(kind, config)
        return Row(**facts, **_progress(path, kind, config, facts["parts"]))
    except (RunError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Row(**facts, state="damaged", why=" ".join(str(error).split()) or type(error).__name__)


def _progress(path: Path, kind: str, config: Mapping, parts: tuple[Path, ...]) -> dict:
    """state, fraction, result, tokens and seconds of a run whose configuration is sound."""
    if (path / "summary.json").exists():
        summary = read_json(path / "summary.json")
        if not isinstance(summary, dict):
            raise RunError(f"{path / 'summary.json'} holds no summary")
        for name, record in summary.get("files", {}).items():
            there = (path / name).stat().st_size if (path / name).exists() else -1
            if there < record["bytes"]:
                raise RunError(f"{path / name} " + ("is missing" if there < 0 else f"is too short: {there:,} bytes of {record['bytes']:,}"))
        return {
            "state": "finished",
            "result": headline(kind, summary),
            "tokens": finite_number(summary.get("tokens")),
            "seconds": finite_number(summary.get("seconds")),
        }
    if unscored(path) and all(map(unscored, parts)):
        return {"state": "running" if locked(path) else "failed"}
    line = last_line(path / "metrics.jsonl")
    result = headline(kind, {"nll": line.get("total_nll"), "last": line, **({"mean": line["mean"]} if "mean" in line else {})})
    return {
        "state": "running" if locked(path) else "stopped",
        "fraction": _fraction(path, kind, config, line),
        "result": result,
        "tokens": finite_number(line.get("total_tokens")),
        "seconds": finite_number(line.get("total_seconds")),
    }


def last_line(path: Path, block: int = 1 << 16) -> dict:
    """The last whole line of a metrics.jsonl, read from its end; {} where there is none."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        read = b""
        while size and read.count(b"\n") < 2:
            step = min(block, size)
            size -= step
            file.seek(size)
            read = file.read(step) + read
    whole = read[: read.rfind(b"\n") + 1].splitlines()
    if not whole:
        return {}
    try:
        line = json.loads(whole[-1])
    except ValueError:
        raise RunError(f"{path}: its last line is not JSON") from None
    if not isinstance(line, dict):
        raise RunError(f"{path}: its last line is no record")
    return line


def _fraction(path: Path, kind: str, config: Mapping, line: Mapping) -> float | None:
    """How far an unfinished run is: of its steps, its tokens or its texts' bytes, whichever is nearer its end."""
    shares = []
    if kind in ("reweight", "icl") and config.get("steps"):
        shares.append(line.get("step", 0) / config["steps"])
    elif kind == "eval" and line:
        if config.get("tokens"):
            shares.append(line["total_tokens"] / config["tokens"])
        bits, size = line.get("total_bits_per_byte"), _bytes_of_texts(path)
        if bits and size and not config.get("split"):
            shares.append(line["total_nll"] * line["total_tokens"] / (math.log(2) * bits) / size)
    return min(max(shares), 1.0) if shares else None


def _bytes_of_texts(path: Path) -> int | None:
    """Of all texts together; None where one could not be looked at (a pipe), or by older versions."""
    try:
        inputs = read_json(path / "inputs.json")
    except RunError:
        return None
    sizes = [fact.get("bytes") if isinstance(fact, dict) else None for name, fact in inputs.items() if name.startswith("text ")]
    return sum(sizes) if sizes and all(sizes) else None


def disk_use(folder: Path) -> tuple[int, float]:
    """(bytes that a directory takes on the disk, when something in it was last written). Other runs inside it count."""
    total, newest, todo = 0, 0.0, [folder]
    while todo:
        here = todo.pop()
        for entry in _entries(here):
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            total += status.st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                todo.append(Path(entry.path))
            elif not entry.name.startswith("."):
                newest = max(newest, status.st_mtime)
    if not newest:
        try:
            newest = folder.stat().st_mtime
        except OSError:
            pass
    return total, newest
