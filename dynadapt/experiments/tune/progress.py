"""Progress of tuning: a bar over the minutes on a terminal, a line for each stage anywhere else."""

from __future__ import annotations


class Bar:
    def __init__(self, stream, minutes: float):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.minutes = minutes
        self.progress = Progress(
            TextColumn("{task.fields[clock]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=Console(file=stream),
            transient=True,
        )
        self.task = None

    def __enter__(self):
        self.progress.start()
        self.task = self.progress.add_task("starting", total=1.0, clock="0:00")
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def __call__(self, event: dict) -> None:
        self.progress.update(self.task, completed=event["fraction"], description=event["stage"], clock=clock(event["seconds"]))


class Lines:
    def __init__(self, stream, minutes: float):
        self.stream, self.minutes = stream, minutes

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def __call__(self, event: dict) -> None:
        if event["new"]:
            print(f"{clock(event['seconds'])} of {clock(60 * self.minutes)}  {event['stage']}", file=self.stream, flush=True)


class Quiet(Lines):
    def __call__(self, event: dict) -> None:
        pass


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def progress_for(stream, minutes: float, quiet: bool = False):
    return (Quiet if quiet else Bar if stream.isatty() else Lines)(stream, minutes)
