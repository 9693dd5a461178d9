"""What `dynadapt icl train` shows while it trains."""

from __future__ import annotations

from dynadapt.runs import progress


def progress_for(steps: int, stream=None, every: float = 5.0):
    """Context managers that are called with a run's lines of metrics."""
    return progress.progress_for(stream, every, Training(steps))


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
