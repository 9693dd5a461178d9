"""What `dynadapt icl train` shows while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping

from dynadapt.runs import progress


def progress_for(steps: int | dict[str, int], stream=None, every: float = 5.0, done: Mapping[str, int] | None = None):
    """Context managers that are called with a run's lines of metrics. Of several runs, {name: steps}, a line says which by "run"; done: what
    they had made before."""
    return progress.progress_for(stream, every, Training(steps) if isinstance(steps, int) else Together(steps, done))


class Training(progress.Status):
    fields = ("count", "bar", "said", "left")

    def __init__(self, steps: int):
        self.steps, self.pace, self.count, self.fraction = steps, progress.Pace(), f"step 0/{steps:,}", 0.0

    def add(self, line: dict) -> bool:
        step, seconds = line["step"], line["total_seconds"]
        self.pace.start(step, seconds)
        rate = self.pace.rate(step, seconds)
        self.count, self.fraction = f"step {step:,}/{self.steps:,}", step / self.steps
        self.said = f"error {line['error']:.4f}  last point {line['by_k'][-1]:.4f}  {line['dims']} dims {line['points']} points"
        if rate:
            self.said, self.seconds_left = f"{self.said}  {rate:,.1f} steps/s", (self.steps - step) / rate
        return True

    def line(self) -> str:
        return f"{self.count}  {self.left}  {self.said}"


class Together(progress.Status):
    """Of runs that train beside each other; done: steps that they had made before, by name."""

    fields = ("count", "bar", "said", "left")

    def __init__(self, steps: dict[str, int], done: Mapping[str, int] | None = None):
        self.steps, self.pace, self.began = steps, progress.Pace(), time.monotonic()
        self.done, self.first = {**dict.fromkeys(steps, 0), **(done or {})}, {}
        self._count()

    def _count(self) -> int:
        """Sets what is shown of how many; gives how many steps are left."""
        done, all_steps = sum(self.done.values()), sum(self.steps.values())
        ended = sum(self.done[run] >= count for run, count in self.steps.items())
        self.count, self.fraction = f"{ended} of {len(self.steps)} runs, step {done:,}/{all_steps:,}", done / all_steps
        return all_steps - done

    def add(self, line: dict) -> bool:
        name, step = line["run"], line["step"]
        self.done[name], seconds = step, time.monotonic() - self.began
        self.first.setdefault(name, step)  # a resumed run's steps before are none of this process
        made = sum(self.done[run] - first for run, first in self.first.items())
        left = self._count()
        self.pace.start(made, seconds)
        rate = self.pace.rate(made, seconds)
        self.said = f"{name} error {line['error']:.4f}"
        if rate:
            self.said, self.seconds_left = f"{self.said}  {rate:,.1f} steps/s", left / rate
        return True

    def line(self) -> str:
        return f"{self.count}  {self.left}  {self.said}"
