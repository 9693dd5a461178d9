"""The texts in a directory, and what is passed over there."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

from .file_kinds import GATHERED, suffix_of
from .source import TextError, named_errors, open_file

HEAD = 4096  # bytes by which a binary file, or an empty one, is known


def files_in(folder: str) -> tuple[list[str], str]:
    """(paths of the texts under a directory, sorted by their parts; what was passed over, in words). TextError where there are none."""
    if os.path.realpath(folder) == os.path.realpath(os.sep):
        raise TextError(f"text {folder!r} is a directory with everything there is; name one of texts")
    found, skipped, suffixes = [], Counter(), set()
    for place, folders, names in os.walk(folder, onerror=_refuse):
        skipped["hidden"] += sum(name.startswith(".") for name in folders + names)
        folders[:] = [name for name in folders if not name.startswith(".")]
        skipped["linked directories"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for name in names:
            if name.startswith("."):
                continue
            path = os.path.join(place, name)
            why = _why_skipped(path)
            if why is None:
                found.append(path)
            elif why.startswith("."):
                skipped["of other kinds"] += 1
                suffixes.add(why)
            else:
                skipped[why] += 1
    said = ", ".join(
        f"{count} {why}" + (f" ({', '.join(sorted(suffixes)[:8])})" if why == "of other kinds" else "")
        for why, count in sorted(skipped.items())
        if count
    )
    if not found:
        raise TextError(f"text {folder!r} is empty: a directory without text files" + f" (passed over: {said})" * bool(said))
    return sorted(found, key=lambda path: Path(path).parts), said


def _refuse(error: OSError) -> None:
    raise TextError(f"text {error.filename!r}: a directory that can't be read: {error.strerror}")


def _why_skipped(path: str) -> str | None:
    """None for a text; else a suffix that is none of a text, or the reason."""
    try:
        status = os.stat(path)
    except OSError:
        return "broken links"
    if not stat.S_ISREG(status.st_mode):
        return "no plain files"
    suffix, packed = suffix_of(path)
    if suffix and suffix not in GATHERED:
        return f".{suffix}" + ".gz" * packed
    if not status.st_size:
        return "empty"
    if suffix == "parquet":
        return ".parquet.gz" if packed else None
    with named_errors(path), open_file(path) as file:
        head = file.read(HEAD)
    if b"\0" in head or not suffix and not _is_utf8(head):
        return "binary"
    return None if head.strip() or len(head) == HEAD else "empty"


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and len(head) == HEAD  # a character cut by the end of what was read
    return True
