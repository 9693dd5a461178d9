"""Lines of metrics as columns: what a DataFrame, a CSV or a Parquet file holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

MOST = 256  # columns that a list may become; longer ones stay lists, as JSON


def columns(lines: Sequence[Mapping]) -> dict[str, list]:
    """{name: value of each line, None where it has none}, in the order in which names first come.

    Nested records get dotted names. A list of numbers (a value a stream, or an example of a prompt) becomes NAME.0, NAME.1, ..., or NAME
    where no line has more than one; other lists, and records inside lists, are JSON.
    """
    rows = [dict(_leaves(line)) for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    found: dict[str, list] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        lists = [value for value in values if isinstance(value, list)]
        if not lists:
            found[name] = values
            continue
        width = max(map(len, lists))
        plain = all(not isinstance(part, (list, dict, str)) for value in lists for part in value)
        if not plain or width > MOST or len(lists) != sum(value is not None for value in values):
            found[name] = [json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in values]
        elif width <= 1:
            found[name] = [value[0] if value else None for value in values]
        else:
            for place in range(width):
                found[f"{name}.{place}"] = [value[place] if value and place < len(value) else None for value in values]
    return found


def _leaves(content: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
