"""The measured choices (kernels/choices.json) between the calls of a campaign: kept with its records, and put back on a fresh machine.

Nothing but the standard library: it runs before anything is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from .campaign import write_json

KEY = ("op", "rows", "k", "o", "rank")
ENTRY = (*KEY, "form", "fused_ms", "split_ms", "cublas_only_ms")
KEPT = "choices-table.json"  # in the campaign's directory

Table = dict[str, list[dict]]


def read(path: Path) -> Table:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def merged(table: Table, others: Table) -> Table:
    """Both; where both have a size of an op, the ``others``' entry."""
    key = lambda entry: tuple(entry[name] for name in KEY)  # noqa: E731
    found = {}
    for gpu in sorted({*table, *others}):
        entries = {key(entry): entry for entry in [*table.get(gpu, []), *others.get(gpu, [])]}
        found[gpu] = [entries[k] for k in sorted(entries)]
    return found


def measured(folder: Path) -> Table:
    """What the campaign in ``folder`` has measured: its table, and the rows of its stages, of which each is a measurement that counts."""
    found = read(folder / KEPT)
    for path in sorted(folder.glob("choices*.json")):
        record = json.loads(path.read_text("utf-8"))
        for row in record.get("rows", []) if "stage" in record else []:
            if "form" in row and "gpu" in row:
                found = merged(found, {row["gpu"]: [{name: row.get(name) for name in ENTRY}]})
    return found


def take_up(folder: Path, path: Path) -> bool:
    """What was measured in earlier calls goes into the table that the kernels read; True where that changed it."""
    before = read(path)
    table = merged(before, measured(folder))
    if table == before:
        return False
    write_json(path, table)
    return True


def add(path: Path, kept: Path, gpu: str, entry: dict) -> None:
    """One measurement, into the table that the kernels read and beside the campaign's records."""
    for file in dict.fromkeys((path, kept)):
        write_json(file, merged(read(file), {gpu: [{name: entry[name] for name in ENTRY}]}))


def digest(path: Path, gpu: str, layers: Iterable[tuple[int, int, int]]) -> str:
    """Of the forms that the table chooses for these (k, o, rank) on a GPU; "none" where nothing of them was measured."""
    layers = set(layers)
    forms = sorted(
        [*(entry[name] for name in KEY), entry["form"]]
        for entry in read(path).get(gpu, [])
        if tuple(entry[n] for n in ("k", "o", "rank")) in layers
    )
    return hashlib.sha256(json.dumps(forms).encode()).hexdigest()[:12] if forms else "none"
