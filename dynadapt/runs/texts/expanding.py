"""From what the user wrote to documents."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from dynadapt.common.notes import note

from .directories import files_in
from .file_kinds import records_of
from .records import Record, Records, open_records
from .source import Source, TextError

SELECTED = re.compile(r"(.+):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")  # FILE:3 or FILE:1,4-9


def expand(specs: Sequence[str], field: str = "text") -> list[Source]:
    """One Source a document, in the order given, of files, directories, .jsonl, .json and .parquet files, "-" and builtin:NAME.

    FILE:3 or FILE:1,4-9 are single lines (items, rows) of a file of several documents; `field` is their key or column. What was
    passed over (in a directory, or documents of nothing but spaces) is said in one note. TextError names what can't be read, is
    empty, or is given twice. Files of several documents are read and checked here; `Source.check` does it for the others.
    """
    if isinstance(specs, str):
        specs = (specs,)
    if not isinstance(field, str) or not field:
        raise TextError(f"field {field!r}: give the name of the key or column that holds the text")
    opened: dict[str, Records] = {}
    sources, said, given, real = [], [], {}, {}
    for spec in map(str, specs):
        for source in _of(spec, field, opened, said):
            path = source.path
            if path not in real:
                real[path] = path if source.builtin or path == "-" else os.path.realpath(path)
            where = real[path], source.record and source.record.number
            if where in given:
                raise TextError(f"text {source.spec!r} is given twice" + ("" if given[where] == spec else f", also by {given[where]!r}"))
            given[where] = spec
            sources.append(source)
    said += [
        f"{records.path}: {records.blank} document{'s' * (records.blank != 1)} of nothing but spaces"
        for records in opened.values()
        if records.blank
    ]
    if said:
        _say("texts passed over: " + "; ".join(said))
    return sources


@lru_cache(None)
def _say(text: str) -> None:
    """Once, whoever reads the same texts again."""
    note(text, stacklevel=5)


def stands_for_something(spec: str) -> bool:
    """Whether a text is a pipe, a built-in, something that is there, or chosen documents of a file that is there. Nothing is read."""
    chosen = SELECTED.fullmatch(spec)
    try:
        return spec == "-" or spec.startswith("builtin:") or os.path.exists(spec) or bool(chosen) and os.path.exists(chosen[1])
    except ValueError:  # a NUL
        return False


def _of(spec: str, field: str, opened: dict[str, Records], said: list[str]) -> Iterator[Source]:
    if os.path.isdir(spec):
        paths, skipped = files_in(spec)
        said += [f"in {spec} {skipped}"] * bool(skipped)
        for path in paths:
            label = os.path.relpath(path, spec)
            if records_of(path):
                yield from _records(path, label, None, field, opened)
            else:
                yield Source(path, label, gathered=True)
    elif os.path.exists(spec) and records_of(spec):
        yield from _records(spec, os.path.basename(spec), None, field, opened)
    elif (match := SELECTED.fullmatch(spec)) and not os.path.exists(spec) and os.path.isfile(match[1]) and records_of(match[1]):
        yield from _records(match[1], os.path.basename(match[1]), match[2], field, opened)
    else:
        source = Source(spec)
        source.check_name()
        yield source


def _records(path: str, label: str, numbers: str | None, field: str, opened: dict[str, Records]) -> Iterator[Source]:
    if path not in opened:
        opened[path] = open_records(path, field)
    records = opened[path]
    for record in records.entries if numbers is None else _selected(records, numbers):
        yield Source(f"{path}:{record.number}", f"{label}:{record.number}", True, records, record)


def _selected(records: Records, numbers: str) -> Iterator[Record]:
    by_number = {record.number: record for record in records.entries}
    for part in numbers.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise TextError(f"text '{records.path}:{numbers}': {part} goes backwards; write {last}-{first}")
        for number in range(int(first), int(last or first) + 1):
            if number not in by_number:
                raise TextError(
                    f"text '{records.path}:{number}': no document there; the last one is {records.unit} {records.entries[-1].number}"
                )
            yield by_number[number]


def selection(sources: Sequence[Source]) -> list[str]:
    """What `expand` makes these documents of again: neighbours of one file of several documents as FILE:1,4-9."""
    specs, last = [], None
    for source in sources:
        if source.records is None:
            specs.append(source.spec)
        elif source.records is last:
            specs[-1] += f",{source.record.number}"
        else:
            specs.append(source.spec)
        last = source.records
    return [_shortened(spec) if SELECTED.fullmatch(spec) else spec for spec in specs]


def _shortened(spec: str) -> str:
    path, _, numbers = spec.rpartition(":")
    runs: list[list[int]] = []
    for part in numbers.split(","):
        if "-" in part:
            return spec
        if runs and int(part) == runs[-1][1] + 1:
            runs[-1][1] += 1
        else:
            runs.append([int(part)] * 2)
    return f"{path}:" + ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def inputs(sources: Sequence[Source], facts: Sequence[dict]) -> dict[str, dict]:
    """What `Source.check` said of each file, by its name; of a file of several documents, of all that are read of it.

    A pipe has {}. {"bytes", "sha256"}, and of several documents their number and one digest of them in order.
    """
    found: dict[str, dict] = {}
    several: dict[str, object] = {}
    for source, fact in zip(sources, facts, strict=True):
        if source.records is None:
            found[source.path] = fact
            continue
        entry = found.setdefault(source.path, {"bytes": 0, "sha256": "", "documents": 0})
        several.setdefault(source.path, hashlib.sha256()).update(f"{source.record.number} {fact['sha256']}\n".encode())
        entry["bytes"] += fact["bytes"]
        entry["documents"] += 1
    for path, digest in several.items():
        found[path]["sha256"] = digest.hexdigest()
    return found
