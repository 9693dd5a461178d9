"""A process of our own that keeps one core busy, as a browser or a build beside a run does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "a core busy"  # what rows that were timed beside it are called
# It ends with the process that started it, whatever became of that one.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))\n"


@contextmanager
def busy_core() -> Iterator[int]:
    """Keeps a core busy while the block runs; gives the process's id. It is tied to no core: the system places it, as it would any."""
    process = subprocess.Popen([sys.executable, "-I", "-c", BUSY], stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
