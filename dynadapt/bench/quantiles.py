"""The median of what was measured, how far apart the measurements are, and how sure the median is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def quantiles(measured: Sequence[float], unit: str = "") -> dict[str, float]:
    """{"median", "p20", "p80"}: the median, and by nearest rank the 20% and 80% quantiles; `unit` follows each name ("_ms")."""
    ordered = sorted(measured)
    rank = lambda q: ordered[round(q * (len(ordered) - 1))]  # noqa: E731
    return {f"median{unit}": statistics.median(ordered), f"p20{unit}": rank(0.2), f"p80{unit}": rank(0.8)}


def median_interval(measured: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Between which two measurements the true median lies, whatever they are distributed like.

    A measurement is above the median or below it, as a coin falls: the k-th lowest and the k-th highest enclose it unless fewer than k
    of n coins fall on one side (David and Nagaraja, Order Statistics, 7.1). Of fewer than six, for which even the extremes don't
    reach 95%, the extremes.
    """
    ordered, n = sorted(measured), len(measured)
    k, outside = 1, 2.0 ** (1 - n)  # the chance that the median is outside the k-th ones
    while k < n - k and (further := outside + 2.0 ** (1 - n) * math.comb(n, k)) <= 1 - confidence:
        k, outside = k + 1, further
    return ordered[k - 1], ordered[n - k]
