"""Files that are whole or not there, their digests, and the words for a disk that fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path


class RunError(RuntimeError):
    """A run that can't start or go on; the message says what to do."""


class DiskError(RunError):
    """Writing failed; everything before is kept."""


class RunNote(UserWarning):
    """Something about a run that its user should know."""


def note(text: str) -> None:
    warnings.warn(text, RunNote, stacklevel=3)


def read_json(path: Path) -> dict:
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON ({error})") from None


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all, and on the disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_tree(path.parent, deep=False)
    except OSError as error:
        discard(temporary)
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> DiskError:
    reason = "no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return DiskError(f"{path}: can't write: {reason}. What was scored so far is kept; make room and run again with --resume")


def os_error(error: BaseException, folder: Path) -> OSError | None:
    """The OSError behind an exception. Libraries that write tensors report a full disk in words of their own."""
    at = error
    while at is not None:
        if isinstance(at, OSError):
            return at
        at = at.__cause__ or at.__context__
    full = "os error 28" in str(error) or shutil.disk_usage(folder if folder.exists() else folder.parent).free < 1 << 16
    if full:
        return OSError(errno.ENOSPC, "no space left")
    return OSError(errno.EIO, str(error)) if "os error " in str(error) else None


def discard(path: Path) -> None:
    """Removes a file or a tree if the disk lets it: what is left over is recognised later."""
    try:
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
    except OSError:
        pass


def sync_tree(folder: Path, deep: bool = True) -> None:
    """To disk: files and directories of a tree, or with ``deep`` off the names in one directory alone."""
    for entry in [*(folder.rglob("*") if deep else ()), folder]:
        number = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


# ---- digests

def digest_of(path: Path) -> dict:
    """{"bytes", "sha256"} of a whole file."""
    with open(path, "rb", buffering=0) as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": prefix_digest(file).hexdigest()}


def prefix_digest(file, count: int | None = None):
    """sha256 of the next `count` bytes of an open file (None: all), or None when it has fewer."""
    digest = hashlib.sha256()
    while count is None or count:
        piece = file.read(1 << 20 if count is None else min(1 << 20, count))
        if not piece:
            break
        digest.update(piece)
        count = None if count is None else count - len(piece)
    return None if count else digest


def differs(path: Path, expected: dict) -> str | None:
    """What is wrong with a file that should have this digest; None: nothing is."""
    try:
        found = digest_of(path)
    except OSError as error:
        return f"{path} can't be read ({error.strerror}); it had {expected['bytes']:,} bytes"
    if found["bytes"] != expected["bytes"]:
        return f"{path} has {found['bytes']:,} bytes, {expected['bytes']:,} were written"
    if found["sha256"] != expected["sha256"]:
        return f"{path} is damaged: its sha256 is {found['sha256'][:12]}..., {expected['sha256'][:12]}... was written"
    return None
