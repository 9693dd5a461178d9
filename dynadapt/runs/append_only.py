"""metrics.jsonl and scores.npy: files that only grow, and know the sha256 of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from dynadapt.common.digests import prefix_digest

from .whole_files import RunError

# A row a scored token: its document, its place there (from 1), nats, its id, and the bytes start to stop - 1 of its text that it covers.
SCORE = np.dtype([("document", "<i4"), ("position", "<i4"), ("nll", "<f4"), ("token", "<i4"), ("start", "<i8"), ("stop", "<i8")])


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
    except OSError as error:
        raise RunError(f"{path}: can't be read ({error.strerror})") from None
    return lines


class Growing:
    """A file that is appended to in whole records; a record that doesn't fit is taken back.

    `record` says how far a checkpoint saw it: {"bytes", "sha256"} of the file after its header (sha256 None: not known). What is
    beyond is cut off. RunError for a file that is shorter or another. None: begins anew.
    """

    def __init__(self, path: Path, record: dict | None = None, header: int = 0):
        self.path, self.header = path, header
        self.size, self.digest = header, hashlib.sha256()
        if record:
            self.digest = verified(path, record, header)
            self.size += record["bytes"]
        self.file = open(path, "r+b" if path.exists() else "w+b", buffering=0)
        self.file.truncate(self.size if record else 0)
        self.file.seek(self.size)

    def append(self, record: bytes) -> None:
        try:
            written = 0
            while written < len(record):
                written += self.file.write(record[written:])
        except OSError:
            try:
                self.file.truncate(self.size)
                self.file.seek(self.size)
            except OSError:
                pass  # resuming cuts it off
            raise
        self.size += len(record)
        self.digest.update(record)

    def overwrite_header(self, record: bytes) -> None:
        self.file.seek(0)
        try:
            self.file.write(record)
        finally:
            self.file.seek(self.size)

    def record(self) -> dict:
        return {"bytes": self.size - self.header, "sha256": self.digest.hexdigest()}

    def sync(self) -> None:
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def check_columns(path: Path) -> None:
    """RunError where the rows of a scores.npy are not those that are written now."""
    try:
        columns = np.load(path, mmap_mode="r").dtype
    except (OSError, ValueError):
        return  # `verified` says what is wrong with it
    if columns != SCORE:
        raise RunError(
            f"{path} was begun by a version that kept {', '.join(columns.names or ['nothing known'])} of each token; this one keeps "
            f"{', '.join(SCORE.names)}: go on with that version, or choose another --out"
        )


def verified(path: Path, record: dict, header: int = 0):
    """The sha256 object of the part of a growing file that a record saw; RunError, naming the file, where it is another."""
    wanted = f"its first {record['bytes']:,} bytes{' after the header' * bool(header)} belong to what was saved last"
    if not record["bytes"]:
        return hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(header)
            digest = prefix_digest(file, record["bytes"])
    except OSError as error:
        raise RunError(f"{path} can't be read ({error.strerror}): {wanted}") from None
    if digest is None:
        raise RunError(f"{path} is too short: {wanted}, and it has {max(0, size - header):,}")
    if record["sha256"] is not None and digest.hexdigest() != record["sha256"]:
        raise RunError(
            f"{path} is damaged: {wanted}, and their sha256 is {digest.hexdigest()[:12]}... where {record['sha256'][:12]}... was written"
        )
    return digest


def header_bytes(path: Path) -> int:
    """The size of the header of a scores.npy, as the file itself says it."""
    try:
        with open(path, "rb") as file:
            start = file.read(10)
    except OSError:
        start = b""
    return 10 + int.from_bytes(start[8:], "little") if start.startswith(b"\x93NUMPY") and len(start) == 10 else Scores.HEADER


class Metrics:
    """metrics.jsonl: a line a segment or step."""

    def __init__(self, path: Path, record: dict | None):
        self.growing = Growing(path, record)

    def append(self, line: dict) -> None:
        self.growing.append((json.dumps(line, allow_nan=False) + "\n").encode())


class Scores:
    """scores.npy: a SCORE row per scored token, readable by numpy.load at any time."""

    HEADER = 256

    def __init__(self, path: Path, record: dict | None):
        self.count = record["bytes"] // SCORE.itemsize if record else 0
        self.growing = Growing(path, record, self.HEADER)
        self.growing.overwrite_header(self._header())

    def append(self, rows: np.ndarray) -> None:
        self.growing.append(rows.astype(SCORE).tobytes())
        self.count += len(rows)
        self.growing.overwrite_header(self._header())

    def _header(self) -> bytes:
        text = repr({"descr": SCORE.descr, "fortran_order": False, "shape": (self.count,)})
        return b"\x93NUMPY\x01\x00" + (self.HEADER - 10).to_bytes(2, "little") + text.encode().ljust(self.HEADER - 11) + b"\n"
