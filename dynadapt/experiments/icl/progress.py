"""Live progress of `dynadapt icl train`: a bar on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time

from dynadapt.runs.progress import _clock


def progress_for(steps: int, stream=None, every: float = 5.0):
    """Context managers that are called with a run's lines of metrics."""
    stream = stream or sys.stdout
    return Bar(steps, stream) if stream.isatty() else Lines(steps, stream, every)


class _Speed:
    """Steps per second of this process; a resumed run starts counting anew."""

    def __init__(self, steps: int):
        self.steps, self.first = steps, None

    def describe(self, line: dict) -> tuple[str, str]:
        """(what is known, time left)."""
        said = f"error {line['error']:.4f}  last point {line['by_k'][-1]:.4f}  {line['dims']} dims {line['points']} points"
        if self.first is None:
            self.first = (line["step"], line["total_seconds"])
            return said, "-"
        speed = (line["step"] - self.first[0]) / max(line["total_seconds"] - self.first[1], 1e-9)
        return f"{said}  {speed:,.1f} steps/s", _clock((self.steps - line["step"]) / speed)


class Lines:
    def __init__(self, steps: int, stream, every: float = 5.0):
        self.steps, self.stream, self.every, self.speed = steps, stream, every, _Speed(steps)
        self.shown, self.due = -float("inf"), None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.due:
            self._show(self.due)

    def __call__(self, line: dict) -> None:
        self.due = self.speed.describe(line), line["step"]
        if time.monotonic() - self.shown >= self.every:
            self._show(self.due)

    def _show(self, due) -> None:
        (said, left), step = due
        self.shown, self.due = time.monotonic(), None
        print(f"step {step:,}/{self.steps:,}  left {left}  {said}", file=self.stream, flush=True)


class Bar:
    def __init__(self, steps: int, stream):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.steps, self.speed = steps, _Speed(steps)
        self.progress = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TextColumn("[dim]left {task.fields[left]}"),
            console=Console(file=stream),
        )

    def __enter__(self):
        self.progress.start()
        self.task = self.progress.add_task("", total=self.steps, left="-")
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def __call__(self, line: dict) -> None:
        said, left = self.speed.describe(line)
        self.progress.update(self.task, completed=line["step"], description=said, left=left)
