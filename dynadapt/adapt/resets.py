"""When to go back to the prior: never, at each document, every N tokens, or at a change point in the scores.

``auto`` is a one-sided CUSUM (Page 1954) on a stream's segment scores. Since the last reset the stream keeps the mean
and variance of its segment NLLs. A new segment's NLL x is standardised, z = (x - mean) / std, and

    g = max(0, g + z - DRIFT);   reset when g > THRESHOLD

after at least WARMUP segments (ops/decisions.py). DRIFT = 0.5 ignores rises under half a standard deviation; THRESHOLD = 5 needs, for
instance, two segments at +3 std or one at +5.5. The decision is taken after a segment has been scored and before it
is learned from, so the scores of the past never change. A reset stream skips the update of that segment.

With a guard (guard.py) there is the prior's score to compare with, and ``auto`` asks whether the adapted model is worse than it. A segment's
difference d = sum over its tokens of (adapted NLL - prior's NLL) is a logarithm of likelihoods' ratio, of which ``Alarms`` takes the
same one-sided CUSUM without a mean or a deviation to be learned first:

    g = max(0, g + d);   back to the prior when g > ALARM nats.

It fires when some stretch of segments up to now was scored ALARM nats worse than by the prior, at once where the adapted score is no
number. **False alarms**: of text that is as the adapted model predicts it, n segments give one with a probability of at most
n exp(-ALARM), 1.2% for 256. For such text exp of the sum of d from any one segment on is a martingale of mean 1, which exceeds exp(ALARM)
with a probability of at most exp(-ALARM) (Ville 1939); g > ALARM says that one of n such sums does.

``Alarm`` (reset_policy.py) says what else an alarm of such a guarded stream may do than lead to the prior. Whatever it does, it does behind the segment that raised
it, whose published score stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from dynadapt.ops import decisions

from .reset_policy import ALARM


@dataclass(frozen=True)
class ChangePoint:
    """Where the detector of one stream stands, as it is saved."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    statistic: float = 0.0


class ChangePoints:
    """The detectors of all streams, on their device, which alone decides: the host need not look.

    ``table`` float64 [4, streams] has the fields of ``ChangePoint`` in their order.
    """

    def __init__(self, streams: int, device="cpu"):
        self.table = torch.zeros(4, streams, dtype=torch.float64, device=device)

    def observe(self, slots: torch.Tensor, scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Flags bool [S] of the streams whose score has changed for the worse; their statistics start anew.

        Args:
            slots: int64 [S], different streams. scores: float64 [S], each one's mean NLL of a segment in nats.
            seen: bool [S], False where there was no segment. A score that is not finite counts as none.
        """
        return decisions.observe(self.table, slots, scores, seen)

    def forget(self, stream: int) -> None:
        """One stream's statistics start anew."""
        self.table[:, stream] = 0

    def points(self) -> list[ChangePoint]:
        """Of all streams; waits for the device."""
        return [ChangePoint(int(count), *rest) for count, *rest in self.table.t().tolist()]

    def load(self, points: Sequence[ChangePoint]) -> None:
        """Takes back what ``points`` gave."""
        self.table.copy_(torch.tensor([astuple(point) for point in points], dtype=torch.float64).t())


class Alarms:
    """With a guard: by how many nats each stream's latest stretch of segments was scored worse than by the prior, on their device."""

    def __init__(self, streams: int, device="cpu", nats: float = ALARM):
        self.table, self.nats = torch.zeros(streams, dtype=torch.float64, device=device), nats

    def observe(self, streams: Sequence[int], static: torch.Tensor, adapted: torch.Tensor) -> list[int]:
        """Of R streams' scores [R, T] of one segment, 0 where no token is: which streams go back. Waits for the device."""
        rows = torch.tensor(streams, device=self.table.device)
        ratio = torch.where(torch.isfinite(static), adapted.double() - static.double(), 0.0).sum(1)
        worse = (self.table[rows] + ratio).nan_to_num(math.inf, math.inf, 0.0).clamp(min=0)
        alarm = worse > self.nats
        self.table[rows] = worse.masked_fill(alarm, 0.0)
        return [stream for stream, flag in zip(streams, alarm.tolist()) if flag]

    def forget(self, stream: int) -> None:
        """One stream's stretch begins anew."""
        self.table[stream] = 0.0
