"""A run's numbers as files for other programs: a row a line of metrics, or a row a scored token."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from .metrics import Run
from .whole_files import RunError, replacing

ROWS = 1 << 16  # of scores that are written at a time


def write_csv(path: Path, run: Run, scores: bool = False) -> int:
    """Writes the run's metrics (Run.columns), or with `scores` its tokens (Run.scores), and returns how many rows there are. What a line
    lacks is empty; true and false are words."""
    if scores:
        rows = run.scores()
        write_rows(path, rows.dtype.names, (row for at in range(0, len(rows), ROWS) for row in rows[at : at + ROWS].tolist()))
        return len(rows)
    columns = _metrics(run)
    write_rows(path, columns, zip(*columns.values()))
    return len(run.metrics)


def write_rows(path: Path, head: Iterable[str], rows: Iterable[Sequence]) -> None:
    """A CSV file, whole or not at all. RunError when the disk fails."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def write_parquet(path: Path, run: Run, scores: bool = False) -> int:
    """As `write_csv`, with the types kept. ImportError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"parquet {path}: needs pyarrow: pip install pyarrow (--csv needs nothing)") from None
    rows = run.scores() if scores else None
    content = (
        {name: rows[name] for name in rows.dtype.names} if scores else {name: _one_type(values) for name, values in _metrics(run).items()}
    )
    table = pyarrow.table(content)
    with replacing(path) as temporary:
        parquet.write_table(table, str(temporary))
    return table.num_rows


def _metrics(run: Run) -> dict[str, list]:
    if not run.metrics:
        why = (
            f"runs of {run.kind} keep none; their summary.json has what they found"
            if run.kind in ("diagnose", "advise")
            else "nothing was scored yet"
        )
        raise RunError(f"{run.path} has no metrics: {why}")
    return run.columns()


def _one_type(values: list) -> list:
    """Whole numbers among others as such: a column of a Parquet file has one type."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values] if len(kinds) > 1 else values
