"""Starting Python again: the child uses this package, imports nothing from the working directory, and ends when this process does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LAUNCH = Path(__file__).resolve().with_name("launch.py")


def command(module: str, *words: str) -> list[str]:
    """What runs `python -m module words...` as a child of this process; give it `environment()`."""
    return [sys.executable, str(LAUNCH), str(os.getpid()), module, *words]


def environment(**more: str) -> dict[str, str]:
    """This process's, and that Python processes which the child starts keep off the working directory too."""
    return {**os.environ, "PYTHONSAFEPATH": "1", **more}
