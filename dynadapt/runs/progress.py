"""Live progress of a run: a bar on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import os
import sys
import time


def say(text: str) -> None:
    """What a command is about to do, at once: before it imports torch or loads a model. Onto standard error, by one process of several."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def progress_for(stream=None, every: float = 5.0, status: Status | None = None):
    """A Bar when the stream is a terminal, else Lines. Both are context managers and are called with events of a run.

    status: of the run's kind; that of scoring a text when None.
    """
    stream = stream or sys.stdout
    return Bar(stream, status) if stream.isatty() else Lines(stream, every, status)


class Pace:
    """How fast a count grows in this process; a resumed run starts counting anew."""

    def __init__(self):
        self.first: tuple[float, float] | None = None

    def start(self, count: float, seconds: float) -> None:
        """The run's count and seconds when this process began; what comes later changes nothing."""
        self.first = self.first or (count, seconds)

    def rate(self, count: float, seconds: float) -> float:
        """Per second; 0.0 before the count has grown."""
        return (count - self.first[0]) / max(seconds - self.first[1], 1e-9)


class Status:
    """What is known of a run, from its events so far. A kind of run says what of it is shown: the attributes named in `fields` on a
    terminal, `line()` anywhere else."""

    fields: tuple[str, ...] = ("count", "bar", "share", "said", "left")
    bar_width, transient = 24, False
    count, said = "", ""
    fraction: float | None = None  # done; None: of what is not known
    seconds_left: float | None = None

    @property
    def share(self) -> str:
        return f"{self.fraction or 0.0:4.0%}"

    @property
    def left(self) -> str:
        return f"left {clock(self.seconds_left)}"

    def add(self, event: dict) -> bool:
        """Whether there is news for a line."""
        raise NotImplementedError

    def at_once(self, event: dict) -> bool:
        """Whether this line does not wait for its time."""
        return False

    def end(self) -> bool:
        """The run came to its end; whether that is news for a line."""
        return False

    def line(self) -> str:
        raise NotImplementedError


class Scoring(Status):
    """Of scoring a text."""

    def __init__(self):
        self.pace, self.tokens = Pace(), 0

    def add(self, event: dict) -> bool:
        self.pace.start(event["total_tokens"] - event["tokens"], event["total_seconds"] - event["seconds"])
        self.tokens, self.fraction = event["total_tokens"], event["fraction"]
        rate = self.pace.rate(self.tokens, event["total_seconds"])
        if self.fraction and rate:
            self.seconds_left = self.tokens * (1 - self.fraction) / self.fraction / rate
        gain = "" if event["gain"] is None else f"gain {event['gain']:+.4f}  "
        self.count = f"segment {event['segment'] + 1}"
        self.said = f"nll {event['total_nll']:.4f}  last {event['nll']:.4f}  {gain}{rate:,.0f} tokens/s"
        return True

    def end(self) -> bool:
        """All of the text was scored, of whatever size it turned out to be."""
        news = bool(self.count) and self.fraction != 1.0
        self.fraction, self.seconds_left = 1.0, 0.0
        return news

    def line(self) -> str:
        share = "" if self.fraction is None else f"{self.share}  {self.left}  "
        return f"{self.count}  {self.tokens:,} tokens  {share}{self.said}"


def clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Lines:
    def __init__(self, stream, every: float = 5.0, status: Status | None = None):
        self.stream, self.every, self.status = stream, every, status or Scoring()
        self.shown, self.due = -float("inf"), False

    def __enter__(self):
        return self

    def __exit__(self, kind=None, *exception):
        if kind is None and self.status.end():
            self.due = True
        if self.due:
            self._show()

    def __call__(self, event: dict) -> None:
        self.due = self.status.add(event) or self.due
        if self.due and (self.status.at_once(event) or time.monotonic() - self.shown >= self.every):
            self._show()

    def _show(self) -> None:
        self.shown, self.due = time.monotonic(), False
        print(self.status.line(), file=self.stream, flush=True)


class Bar:
    def __init__(self, stream, status: Status | None = None):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.status, self.task = status or Scoring(), None
        column = {"bar": BarColumn(bar_width=self.status.bar_width), "left": TextColumn("[dim]{task.fields[left]}")}
        self.progress = Progress(
            *(column.get(name) or TextColumn(f"{{task.fields[{name}]}}") for name in self.status.fields),
            console=Console(file=stream),
            transient=self.status.transient,
        )

    def __enter__(self):
        self.progress.start()
        if self.status.count:  # known before the first event
            self._show()
        return self

    def __exit__(self, kind=None, *exception):
        if kind is None and self.task is not None:
            self.status.end()
            self._show()
        self.progress.stop()

    def __call__(self, event: dict) -> None:
        self.status.add(event)
        self._show()

    def _show(self) -> None:
        fraction = self.status.fraction
        shown = {name: getattr(self.status, name) for name in self.status.fields if name != "bar"}
        shown |= {"completed": fraction or 0.0, "total": None if fraction is None else 1.0}
        if self.task is None:
            self.task = self.progress.add_task("", **shown)
        self.progress.update(self.task, **shown)
