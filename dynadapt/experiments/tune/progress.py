"""What `dynadapt tune` shows: a bar over the minutes on a terminal, a line for each stage anywhere else."""

from __future__ import annotations

from contextlib import nullcontext

from dynadapt.runs import progress


def progress_for(stream, minutes: float, quiet: bool = False):
    if quiet:
        return nullcontext(lambda event: None)
    return progress.progress_for(stream, 0.0, Stages(minutes))


class Stages(progress.Status):
    fields, bar_width, transient = ("count", "bar", "said"), 20, True

    def __init__(self, minutes: float):
        self.minutes = minutes

    def add(self, event: dict) -> bool:
        self.count, self.said, self.fraction = progress.clock(event["seconds"]), event["stage"], event["fraction"]
        return event["new"]

    def line(self) -> str:
        return f"{self.count} of {progress.clock(60 * self.minutes)}  {self.said}"
