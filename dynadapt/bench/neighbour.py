"""A process of our own that keeps one core busy, as a browser or a build beside a run does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from dynadapt.common import children

NAME = "a core busy"  # what rows that were timed beside it are called


@contextmanager
def busy_core() -> Iterator[int]:
    """Keeps a core busy while the block runs; gives the process's id. It is tied to no core: the system places it, as it would any."""
    process = subprocess.Popen(children.command(__name__), env=children.environment(), stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":  # until the process that started it ends, whatever became of that one
    parent = os.getppid()
    while os.getppid() == parent:
        sum(range(100_000))
