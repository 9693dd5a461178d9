"""What a comparison of paired runs could have seen: the true difference that its rule finds with a given probability.

With n seeds, whose differences have the standard deviation s, the mean's t value is not centrally distributed around d sqrt(n) / s for a true difference d.
The rule calls it when the two-sided p-value is below a level. Where several comparisons are adjusted by Holm's method, that level is 0.05 over
their number for the first to be called, whatever the others are, and this is the one that counts here.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2
from scipy.stats import norm as normal
from scipy.stats import t as student

POWER = 0.8
POINTS = 2000  # of the distribution of a standard deviation of few values, over which the probability is averaged


def power(difference: float, error: float, freedom: int, level: float) -> float:
    """Probability that a true difference with this standard error of its mean has p < level."""
    reach = float(student.ppf(1 - level / 2, freedom))
    spread = np.sqrt(chi2.ppf((np.arange(POINTS) + 0.5) / POINTS, freedom) / freedom)  # [POINTS] found over true
    shift = difference / error
    return float(np.mean(normal.cdf(shift - reach * spread) + normal.cdf(-shift - reach * spread)))


def seen(error: float, freedom: int, level: float, wanted: float = POWER) -> float:
    """The least true difference that is called with probability `wanted`; error: standard error of the mean, as it was found."""
    return error * _shift(freedom, level, wanted)


@cache
def _shift(freedom: int, level: float, wanted: float) -> float:
    """The same in standard errors."""
    most = 2.0 * float(student.ppf(1 - level / 2, freedom)) * math.sqrt(float(chi2.ppf(0.999, freedom)) / freedom) + 10.0
    return float(brentq(lambda shift: power(shift, 1.0, freedom, level) - wanted, 0.0, most, xtol=1e-6))


def seeds_for(difference: float, spread: float, level: float, wanted: float = POWER, most: int = 10_000) -> int | None:
    """The least number of seeds with which this true difference is called with probability `wanted`; spread: standard deviation of the paired
    differences, as it was found. None where it takes more than `most`.

    Raises:
        ValueError: a difference that is not above 0, a spread below 0, a level that is not between 1e-12 and `wanted`, fewer than two seeds at most; or NaN.
    """
    if not difference > 0:
        raise ValueError(f"difference {difference}: give one above 0")
    if not spread >= 0:
        raise ValueError(f"spread {spread}: give 0 or more")
    if not 1e-12 <= level < wanted < 1:
        raise ValueError(f"level {level}, wanted {wanted}: give a level from 1e-12, below the probability that is wanted, which is below 1")
    if most < 2:
        raise ValueError(f"most {most}: a spread takes at least 2 seeds")
    if seen(spread / math.sqrt(most), most - 1, level, wanted) > difference:
        return None
    low, high = 1, most  # `high` are enough, `low` are not, or no sample
    while high - low > 1:
        middle = (low + high) // 2
        enough = seen(spread / math.sqrt(middle), middle - 1, level, wanted) <= difference if middle > 1 else False
        low, high = (low, middle) if enough else (middle, high)
    return high
