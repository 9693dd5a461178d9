"""Files that are whole or not there, and the words for a disk that fails."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from dynadapt.common.digests import sync_tree
from dynadapt.common.making import discard, in_the_making
from dynadapt.common.notes import RunNote, note  # noqa: F401  (who writes files also says notes)


class RunError(RuntimeError):
    """A run that can't start or go on; the message says what to do."""


class DiskError(RunError):
    """Writing failed; everything before is kept."""


def read_json(path: Path) -> dict:
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON ({error})") from None


def read_json_or(path: Path, absent=None):
    """What a JSON file holds; `absent` where there is no such file."""
    return read_json(path) if path.exists() else absent


def finite_number(value) -> float | int | None:
    """The value where it is a finite number, else None: JSON has no infinity, and True is no number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


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


def replace_file(path: Path, text: str) -> None:
    """`text` into a file beside it that nobody else has, which then takes its name: whole, or what was there before stays."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", newline="")


def write_summary(path: Path, content: dict) -> None:
    """JSON that a command was asked to write, as `replace_file` does it."""
    replace_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path):
    """An empty file that nobody else has, to be filled, which takes the name `path` when all that is done inside has been done; else what
    was there before stays. RunError when the disk fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, which a file would replace")
        with in_the_making(path, directory=False) as temporary:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: can't write: {_reason(error)}") from error


@contextmanager
def new_directory(out: Path, or_empty: bool = False):
    """A directory that nobody else has, which takes the name `out` when all that is done inside has been done; else it goes.

    Raises RunError where `out` exists (with `or_empty`, as anything but an empty directory) or can't be made.
    """
    if os.path.lexists(out) and not (or_empty and out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise RunError(f"{out} exists; name a directory that does not{', or an empty one' if or_empty else ''}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with in_the_making(out, directory=True) as temporary:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(out)
    except Exception as error:
        cause = os_error(error, out.parent)
        if cause is None or isinstance(error, RunError):
            raise
        raise RunError(f"{out}: can't write: {_reason(cause)}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(error: OSError) -> str:
    return "no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))


def disk_error(error: OSError, path: Path) -> DiskError:
    return DiskError(f"{path}: can't write: {_reason(error)}. What was scored so far is kept; make room and run again with --resume")


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
