"""Files that a command is asked to write, which must not be what it reads from: a run's own files, or a text that was scored."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .whole_files import RunError


def check_product(path: str | Path, texts: Iterable[str | Path] = ()) -> None:
    """RunError where writing `path` would change a run directory's files or one of `texts`."""
    path = Path(path)
    parent = path.absolute().parent
    if any((folder / "config.json").is_file() and (folder / "metrics.jsonl").exists() for folder in (parent, *parent.parents)):
        raise RunError(f"{path} lies in a run's directory, whose files are its record; choose another name")
    for text in texts:
        if os.path.exists(path) and os.path.exists(text) and os.path.samefile(path, text):
            raise RunError(f"{path} is the text that was scored; choose another name")
