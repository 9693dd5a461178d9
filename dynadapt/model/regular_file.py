"""Files that are files: opening a pipe would wait for whoever writes to it, and a device may never end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ModelError

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def open_regular(path, buffering: int = -1):
    """`path`, open for reading bytes.

    Raises:
        OSError: it can't be opened, or is a directory, a pipe, a socket or a device.
    """
    handle = os.open(
        path,
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0),
    )
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
            raise OSError(f"it is {kind}, not a file")
        return os.fdopen(handle, "rb", buffering=buffering)
    except BaseException:
        os.close(handle)
        raise


@contextmanager
def opened(path, buffering: int = -1) -> Iterator:
    """`open_regular` for a block that reads the file. ModelError names it where it can't be opened or read."""
    try:
        with open_regular(path, buffering) as file:
            yield file
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
