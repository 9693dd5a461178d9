"""Files and directories in the making: under a hidden name beside the one that they will take, and locked while their maker lives.

A process that is killed leaves such a name behind without its lock, by which the next that makes the same thing knows it and takes it
away. What another process is still at work on is locked, and stays.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .notes import note

MARK = "making-"


@contextmanager
def in_the_making(path: Path, directory: bool) -> Iterator[Path]:
    """An empty directory or file that nobody else has, beside ``path``, in a folder that is there. Rename it once it is whole; what has
    not been renamed at the end goes, and what killed makers of ``path`` left goes before. OSError when the disk fails."""
    _remove_leftovers(path)
    made, lock = _made(path, directory)
    try:
        yield made
    finally:
        discard(made)
        if lock is not None:
            os.close(lock)


def discard(path: Path) -> None:
    """Removes a file or a tree if the disk lets it: what is left over is recognised later."""
    try:
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
    except OSError:
        pass


def _made(path: Path, directory: bool) -> tuple[Path, int | None]:
    prefix = f".{path.name}.{MARK}"
    while True:
        if directory:
            made = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
            os.close(handle)
            made = Path(name)
        try:
            lock = _locked(made)
        except FileNotFoundError:
            continue  # taken for a leftover before it was locked
        except OSError:
            return made, None  # a disk without locks: nobody can take it for a leftover there
        if made.exists():
            return made, lock
        os.close(lock)


def _locked(path: Path, how: int = fcntl.LOCK_EX) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, how)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_leftovers(path: Path) -> None:
    ours = re.compile(re.escape(f".{path.name}.{MARK}") + "[a-z0-9_]{8}")
    try:
        names = sorted(filter(ours.fullmatch, os.listdir(path.parent)))
    except PermissionError:  # of a folder that can be written and not listed
        return
    for name in names:
        left = path.parent / name
        try:
            lock = _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            continue  # its maker lives, or has just ended
        except OSError as error:
            note(f"{left} may have been left by a process that was killed ({error.strerror}); if nothing is making {path}, remove it")
            continue
        discard(left)
        os.close(lock)
        if left.exists():
            note(f"{left} was left by a process that was killed, and can't be removed; remove it by hand")
