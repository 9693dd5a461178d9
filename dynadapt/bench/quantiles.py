"""The median of what was measured, and how far apart the measurements are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quantiles(measured: Sequence[float], unit: str = "") -> dict[str, float]:
    """{"median", "p20", "p80"}: the median, and by nearest rank the 20% and 80% quantiles; `unit` follows each name ("_ms")."""
    ordered = sorted(measured)
    rank = lambda q: ordered[round(q * (len(ordered) - 1))]  # noqa: E731
    return {f"median{unit}": statistics.median(ordered), f"p20{unit}": rank(0.2), f"p80{unit}": rank(0.8)}
