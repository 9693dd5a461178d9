"""Live progress of a run: a bar on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import os
import sys
import time


def say(text: str) -> None:
    """What a command is about to do, at once: before it imports torch or loads a model. Onto standard error, by one process of several."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def progress_for(stream=None, every: float = 5.0):
    """A Bar when the stream is a terminal, else Lines. Both are context managers and are called with events of a run."""
    stream = stream or sys.stdout
    return Bar(stream) if stream.isatty() else Lines(stream, every)


class _Speed:
    """Tokens per second over this process's segments, and the seconds left; a resumed run starts counting anew."""

    def __init__(self):
        self.first: dict | None = None
        self.tokens_per_second = 0.0
        self.left: float | None = None

    def add(self, event: dict) -> None:
        if self.first is None:
            self.first = {
                "tokens": event["total_tokens"] - event["tokens"],
                "seconds": event["total_seconds"] - event["seconds"],
                "fraction": None,
            }
        seconds = event["total_seconds"] - self.first["seconds"]
        self.tokens_per_second = (event["total_tokens"] - self.first["tokens"]) / max(seconds, 1e-9)
        if event["fraction"]:
            share_here = event["fraction"] * (1 - self.first["tokens"] / event["total_tokens"])
            self.left = (1 - event["fraction"]) * seconds / max(share_here, 1e-9)

    def end(self, event: dict) -> dict:
        """The last event of a run that came to its end: all of the text, of whatever size it turned out to be."""
        self.left = 0.0
        return {**event, "fraction": 1.0}


def _describe(event: dict, speed: _Speed) -> str:
    parts = [f"nll {event['total_nll']:.4f}", f"last {event['nll']:.4f}"]
    if event["gain"] is not None:
        parts.append(f"gain {event['gain']:+.4f}")
    parts.append(f"{speed.tokens_per_second:,.0f} tokens/s")
    return "  ".join(parts)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Lines:
    def __init__(self, stream, every: float = 5.0):
        self.stream, self.every, self.speed = stream, every, _Speed()
        self.shown = -float("inf")
        self.event: dict | None = None  # the last one
        self.unshown = False

    def __enter__(self):
        return self

    def __exit__(self, kind=None, *exception):
        if self.event is not None and kind is None:
            self.event, self.unshown = self.speed.end(self.event), self.unshown or self.event["fraction"] != 1.0
        if self.unshown:
            self._show(self.event)

    def __call__(self, event: dict) -> None:
        self.speed.add(event)
        now = time.monotonic()
        self.event, self.unshown = event, now - self.shown < self.every
        if not self.unshown:
            self.shown = now
            self._show(event)

    def _show(self, event: dict) -> None:
        share = "" if event["fraction"] is None else f"{event['fraction']:4.0%}  left {_clock(self.speed.left)}  "
        print(
            f"segment {event['segment'] + 1}  {event['total_tokens']:,} tokens  {share}{_describe(event, self.speed)}",
            file=self.stream,
            flush=True,
        )


class Bar:
    def __init__(self, stream):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.speed = _Speed()
        self.progress = Progress(
            TextColumn("{task.fields[count]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            TextColumn("[dim]left {task.fields[left]}"),
            console=Console(file=stream),
            transient=False,
        )
        self.task = None
        self.event: dict | None = None  # the last one

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, kind=None, *exception):
        if self.event is not None and kind is None:
            self._show(self.speed.end(self.event))
        self.progress.stop()

    def __call__(self, event: dict) -> None:
        if self.task is None:
            self.task = self.progress.add_task("", total=1.0, count="", left="-")
        self.speed.add(event)
        self.event = event
        self._show(event)

    def _show(self, event: dict) -> None:
        self.progress.update(
            self.task,
            completed=event["fraction"] or 0.0,
            total=1.0 if event["fraction"] is not None else None,
            description=_describe(event, self.speed),
            left=_clock(self.speed.left),
            count=f"segment {event['segment'] + 1}",
        )
