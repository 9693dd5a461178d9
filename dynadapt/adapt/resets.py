"""When to go back to the prior: never, at each document, every N tokens, or at a change point in the scores.

``auto`` is a one-sided CUSUM (Page 1954) on a stream's segment scores. Since the last reset the stream keeps the mean
and variance of its segment NLLs. A new segment's NLL x is standardised, z = (x - mean) / std, and

    g = max(0, g + z - DRIFT);   reset when g > THRESHOLD

after at least WARMUP segments. DRIFT = 0.5 ignores rises under half a standard deviation; THRESHOLD = 5 needs, for
instance, two segments at +3 std or one at +5.5. The decision is taken after a segment has been scored and before it
is learned from, so the scores of the past never change. A reset stream skips the update of that segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynadapt.common.checks import is_integer, wrong

DRIFT = 0.5
THRESHOLD = 5.0
WARMUP = 8
MIN_STD = 0.02  # nats; keeps a very even stream from resetting on noise


@dataclass
class ChangePoint:
    """The CUSUM of one stream. Call ``observe`` with each segment's mean NLL in nats."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    statistic: float = 0.0

    def observe(self, x: float) -> bool:
        """True when the score has changed for the worse; the statistics then start anew."""
        if not math.isfinite(x):
            return False
        if self.count >= WARMUP:
            std = max(math.sqrt(self.squares / (self.count - 1)), MIN_STD)
            self.statistic = max(0.0, self.statistic + (x - self.mean) / std - DRIFT)
            if self.statistic > THRESHOLD:
                self.count, self.mean, self.squares, self.statistic = 0, 0.0, 0.0, 0.0
                return True
        self.count += 1
        step = x - self.mean
        self.mean += step / self.count
        self.squares += step * (x - self.mean)
        return False


def check_reset(reset) -> str | int:
    """``reset``; refuses anything but never, document, auto or a positive number of tokens."""
    if isinstance(reset, str) and reset in ("never", "document", "auto"):
        return reset
    if is_integer(reset) and reset > 0:
        return int(reset)
    raise wrong("reset", reset, "never, document, auto or a positive number of tokens")
