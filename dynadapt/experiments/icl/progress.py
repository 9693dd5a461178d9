"""What `dynadapt icl train` shows while it trains."""

from __future__ import annotations

import time

from dynadapt.runs import progress


def progress_for(steps: int | dict[str, int], stream=None, every: float = 5.0):
    """Context managers that are called with a run's lines of metrics. Of several runs, {name: steps}, a line says which by "run"."""
    return progress.progress_for(stream, every, Training(steps) if isinstance(steps, int) else Together(steps))


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
    """Of runs that train beside each other."""

    fields = ("count", "bar", "said", "left")

    def __init__(self, steps: dict[str, int]):
        self.steps, self.pace, self.began, self.count = steps, progress.Pace(), time.monotonic(), ""
        self.done: dict[str, int] = {}

    def add(self, line: dict) -> bool:
        name = line["run"]
        self.done[name] = line["step"]
        done, all_steps, seconds = sum(self.done.values()), sum(self.steps.values()), time.monotonic() - self.began
        self.pace.start(done, seconds)
        rate = self.pace.rate(done, seconds)
        ended = sum(count == self.steps[run] for run, count in self.done.items())
        self.count, self.fraction = f"{ended} of {len(self.steps)} runs, step {done:,}/{all_steps:,}", done / all_steps
        self.said = f"{name} error {line['error']:.4f}"
        if rate:
            self.said, self.seconds_left = f"{self.said}  {rate:,.1f} steps/s", (all_steps - done) / rate
        return True

    def line(self) -> str:
        return f"{self.count}  {self.left}  {self.said}"
