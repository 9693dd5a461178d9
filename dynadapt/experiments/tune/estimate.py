"""What windows say of the rest of a text: paired differences to their mean and interval.

The windows [K] are in the order in which they were learned from; learning carried over from one to the next. Adapting gains little at first
and more as it has learned, so the first half of them stands for the beginning of the text, as long as the windows' own first half, and the
second half for all that follows. The gain is the weighted mean of the two halves, its interval Welch's: Student's t with the variances of the halves
apart. On a text much longer than the windows gains usually go on growing, and then the estimate is low; it never counts on that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
KIND = "Welch's t interval over windows, paired by window"


@dataclass(frozen=True)
class Estimate:
    """gain: nats per token, positive where the loss fell; low and high: its interval."""

    gain: float
    low: float
    high: float
    windows: int
    early: float                     # weight of the first half


def estimate(gains, learned: float, text: float, level: float = LEVEL) -> Estimate:
    """From the gain of each window [K >= 4], the tokens that all of them have together and the tokens of the text that it is for."""
    gains = np.asarray(gains, float)
    if gains.ndim != 1 or len(gains) < 4 or not np.isfinite(gains).all():
        raise ValueError(f"gains {gains.tolist()!r}: give at least 4 finite numbers")
    half = len(gains) // 2
    early = min(0.5, learned * half / len(gains) / max(text, 1.0))
    parts = [(early, gains[:half]), (1 - early, gains[half:])]
    mean = sum(weight * part.mean() for weight, part in parts)
    errors = [weight ** 2 * part.var(ddof=1) / len(part) for weight, part in parts]
    variance = sum(errors)
    if variance <= 0:
        return Estimate(float(mean), float(mean), float(mean), len(gains), early)
    freedom = variance ** 2 / sum(error ** 2 / (len(part) - 1) for error, (_, part) in zip(errors, parts) if error)
    reach = float(student.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
    return Estimate(float(mean), float(mean - reach), float(mean + reach), len(gains), early)


def late_mean(gains, learned: float, text: float) -> float:
    """The same weighted mean, of any number of windows; -inf where one is not finite: a candidate that diverged loses."""
    gains = np.asarray(gains, float)
    if not len(gains) or not np.isfinite(gains).all():
        return -np.inf
    half = len(gains) // 2
    if not half:
        return float(gains.mean())
    early = min(0.5, learned * half / len(gains) / max(text, 1.0))
    return float(early * gains[:half].mean() + (1 - early) * gains[half:].mean())
