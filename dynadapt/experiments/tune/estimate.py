"""What windows say of the rest of a text: paired differences to their mean and interval.

The windows [K] are in the order in which they were learned from; learning carried over from one to the next. Adapting gains little at first
and more as it has learned, so the first half of them stands for the beginning of the text, as long as the windows' own first half, and the
second half for all that follows. The gain is the weighted mean of the two halves: nothing is added for what learning from more will bring.

The interval is Welch's, Student's t with the variances of the halves apart; and as gains usually go on growing, its upper end is where
they get to if they grow with the logarithm of the tokens learned from, as steeply as the windows allow (the one-sided limit of the slope). If
even that slope is downward, the lower end follows it. In simulated streams such intervals of 95% hold the gain over the whole text 91 to 100%
of the time where gains stay, saturate, or grow as a logarithm or a power; 85% where nothing levels off before the windows end. What they can't
hold is a decline that sets in later than the windows reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
KIND = "Welch's t over windows, paired; the upper end allows for gains that grow with the logarithm of the tokens learned from"


@dataclass(frozen=True)
class Estimate:
    """gain: nats per token, positive where the loss fell; low and high: its interval."""

    gain: float
    low: float
    high: float
    windows: int
    early: float  # weight of the first half


def estimate(gains, learned: float, text: float, level: float = LEVEL) -> Estimate:
    """From the gain of each window [K >= 4], the tokens that all of them have together and the tokens of the text that it is for."""
    gains = np.asarray(gains, float)
    if gains.ndim != 1 or len(gains) < 4 or not np.isfinite(gains).all():
        raise ValueError(f"gains {gains.tolist()!r}: give at least 4 finite numbers")
    half = len(gains) // 2
    early = min(0.5, learned * half / len(gains) / max(text, 1.0))
    parts = [(early, gains[:half]), (1 - early, gains[half:])]
    mean = sum(weight * part.mean() for weight, part in parts)
    errors = [weight**2 * part.var(ddof=1) / len(part) for weight, part in parts]
    variance, reach = sum(errors), 0.0
    if variance > 0:
        freedom = variance**2 / sum(error**2 / (len(part) - 1) for error, (_, part) in zip(errors, parts) if error)
        reach = float(student.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
    trend = _trend(gains, early, len(gains) * text / max(learned, 1.0), level)
    return Estimate(float(mean), float(mean - reach + min(0.0, trend)), float(mean + reach + max(0.0, trend)), len(gains), early)


def _trend(gains: np.ndarray, early: float, windows: float, level: float) -> float:
    """What the steepest logarithmic growth that the gains [K] allow adds over a text as long as so many windows."""
    count, half = len(gains), len(gains) // 2
    x = np.log1p(np.arange(count) + 0.5)
    weights = np.r_[np.full(half, early / half), np.full(count - half, (1 - early) / (count - half))]
    apart = x - x.mean()
    slope = apart @ gains / (apart @ apart)
    residuals = gains - gains.mean() - slope * apart
    error = np.sqrt(residuals @ residuals / (count - 2) / (apart @ apart))
    further = np.log1p(np.linspace(0, max(windows, count), 1000) + 0.5).mean() - weights @ x
    return float((slope + student.ppf(level, count - 2) * error) * max(0.0, further))


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
