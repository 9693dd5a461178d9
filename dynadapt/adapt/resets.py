"""When to go back to the prior: never, at each document, every N tokens, or at a change point in the scores.

``auto`` is a one-sided CUSUM (Page 1954) on a stream's segment scores. Since the last reset the stream keeps the mean
and variance of its segment NLLs. A new segment's NLL x is standardised, z = (x - mean) / std, and

    g = max(0, g + z - DRIFT);   reset when g > THRESHOLD

after at least WARMUP segments. DRIFT = 0.5 ignores rises under half a standard deviation; THRESHOLD = 5 needs, for
instance, two segments at +3 std or one at +5.5. The decision is taken after a segment has been scored and before it
is learned from, so the scores of the past never change. A reset stream skips the update of that segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from dynadapt.common.checks import is_integer, wrong

DRIFT = 0.5
THRESHOLD = 5.0
WARMUP = 8
MIN_STD = 0.02  # nats; keeps a very even stream from resetting on noise


@dataclass(frozen=True)
class ChangePoint:
    """Where the detector of one stream stands, as it is saved."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    statistic: float = 0.0


class ChangePoints:
    """The detectors of all streams, float64 [streams] on their device, which alone decides: the host need not look."""

    def __init__(self, streams: int, device="cpu"):
        self.count, self.mean, self.squares, self.statistic = (torch.zeros(streams, dtype=torch.float64, device=device) for _ in range(4))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.count, self.mean, self.squares, self.statistic

    def observe(self, slots: torch.Tensor, scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Flags bool [S] of the streams whose score has changed for the worse; their statistics start anew.

        Args:
            slots: int64 [S], different streams. scores: float64 [S], each one's mean NLL of a segment in nats.
            seen: bool [S], False where there was no segment. A score that is not finite counts as none.
        """
        count, mean, squares, statistic = (t[slots] for t in self.tensors)
        seen = seen & torch.isfinite(scores)
        std = (squares / (count - 1).clamp(min=1)).sqrt().clamp(min=MIN_STD)
        warm = count >= WARMUP
        statistic = torch.where(warm, (statistic + (scores - mean) / std - DRIFT).clamp(min=0), statistic)
        flagged = seen & warm & (statistic > THRESHOLD)
        new_mean = mean + (scores - mean) / (count + 1)
        new = count + 1, new_mean, squares + (scores - mean) * (scores - new_mean), statistic
        for t, value in zip(self.tensors, new):
            t.index_copy_(0, slots, torch.where(flagged, 0.0, torch.where(seen, value, t[slots])))
        return flagged

    def forget(self, stream: int) -> None:
        """One stream's statistics start anew."""
        for t in self.tensors:
            t[stream] = 0

    def points(self) -> list[ChangePoint]:
        """Of all streams; waits for the device."""
        return [ChangePoint(int(count), *rest) for count, *rest in zip(*(t.tolist() for t in self.tensors))]

    def load(self, points: Sequence[ChangePoint]) -> None:
        """Takes back what ``points`` gave."""
        for t, values in zip(self.tensors, zip(*map(astuple, points))):
            t.copy_(torch.tensor(values, dtype=torch.float64))


def check_reset(reset) -> str | int:
    """``reset``; refuses anything but never, document, auto or a positive number of tokens."""
    if isinstance(reset, str) and reset in ("never", "document", "auto"):
        return reset
    if is_integer(reset) and reset > 0:
        return int(reset)
    raise wrong("reset", reset, "never, document, auto or a positive number of tokens")
