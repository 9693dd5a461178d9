"""What grows and falls during training: dimensions and points of the prompts, and the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import IclError, check_count, check_number

SCHEDULES = ("constant", "triangle", "cosine")


@dataclass(frozen=True)
class Ramp:
    """A whole number that grows by `step` at every `every` training steps, from `start` to `end`."""

    start: int
    end: int
    step: int = 1
    every: int = 2000

    def __post_init__(self):
        for name in ("start", "end", "step", "every"):
            check_count(f"ramp: {name}", getattr(self, name))
        if self.start > self.end:
            raise IclError(f"ramp: start {self.start} is above end {self.end}")

    def at(self, step: int) -> int:
        """The number at training step 0, 1, ..."""
        return min(self.end, self.start + self.step * (step // self.every))

    @property
    def done(self) -> int:
        """The first training step with the last number."""
        return -(-(self.end - self.start) // self.step) * self.every


@dataclass(frozen=True)
class Rate:
    """The learning rate by training step.

    constant: `lr` after a linear warm-up; triangle: up to `lr` over the warm-up and linearly down to 0 at the end (Raventós et
    al.); cosine: the same way up, and down to 0 along a half cosine.
    """

    schedule: str
    lr: float
    warmup: int
    steps: int

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise IclError(f"schedule {self.schedule!r}: give one of {', '.join(SCHEDULES)}")
        check_number("lr", self.lr, 0.0, above=True)
        check_count("steps", self.steps)
        check_count("warmup", self.warmup, 0, self.steps, ", the steps of the run")

    def at(self, step: int) -> float:
        """The rate of training step 0, 1, ...; the last step's is above 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        left = (self.steps - step) / max(1, self.steps - self.warmup)  # 1 .. above 0
        return self.lr * (left if self.schedule == "triangle" else 0.5 - 0.5 * math.cos(math.pi * left))
