"""Files that are whole or not there, and the words for a disk that fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from pathlib import Path

from dynadapt.digests import sync_tree


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
