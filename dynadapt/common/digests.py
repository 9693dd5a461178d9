"""Digests of files, and putting files and names on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


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


def digests_under(folder: Path) -> dict[str, dict]:
    """digest_of every file of a tree, by its path in it."""
    return {str(path.relative_to(folder)): digest_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


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


def sync_tree(folder: Path, deep: bool = True) -> None:
    """To disk: files and directories of a tree, or with ``deep`` off the names in one directory alone."""
    for entry in [*(folder.rglob("*") if deep else ()), folder]:
        number = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
