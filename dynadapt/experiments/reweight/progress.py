"""Live progress of a reweighting run: a table of domains on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time

from dynadapt.runs.progress import _clock


def progress_for(steps: int, stream=None, every: float = 5.0):
    """A Table when the stream is a terminal, else Lines. Both are context managers, called with the run's lines of metrics."""
    stream = stream or sys.stdout
    return Table(steps, stream) if stream.isatty() else Lines(steps, stream, every)


class _Status:
    """What is known by now, from the lines so far."""

    def __init__(self, steps: int):
        self.steps, self.step, self.tokens, self.loss = steps, 0, 0, None
        self.weights, self.losses, self.heldout, self.change, self.velocity = {}, {}, {}, {}, {}
        self.notes: list[str] = []
        self.first: tuple[int, int, float] | None = None
        self.seconds = 0.0

    def add(self, line: dict) -> None:
        if self.first is None:  # a resumed run counts its speed anew
            self.first = (
                line["step"] - (line["kind"] == "step"),
                line["total_tokens"] - line.get("tokens", 0),
                line["total_seconds"] - line["seconds"],
            )
        self.step, self.tokens, self.seconds = line["step"], line["total_tokens"], line["total_seconds"]
        self.weights = line["weights"]
        if line["notes"]:
            self.notes = line["notes"]
        if line["kind"] == "step":
            self.loss = line["loss"]
            self.losses.update(line["losses"])
        else:
            self.heldout, self.change, self.velocity = line["heldout"], line["change"], line["velocity"] or {}

    def headline(self) -> str:
        step, tokens, seconds = self.first
        spent = max(self.seconds - seconds, 1e-9)
        left = (self.steps - self.step) * spent / (self.step - step) if self.step > step else None
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        speed = f"{(self.tokens - tokens) / spent:,.0f} tokens/s"
        return f"step {self.step}/{self.steps}  {self.tokens:,} tokens{loss}  {speed}  left {_clock(left)}"

    def cells(self, domain: str) -> tuple[str, str, str, str, str]:
        """weight, training loss, held-out loss, its change since the start, velocity."""
        show = lambda values, form: format(values[domain], form) if domain in values else "-"  # noqa: E731
        return (
            show(self.weights, ".3f"),
            show(self.losses, ".4f"),
            show(self.heldout, ".4f"),
            show(self.change, "+.4f"),
            show(self.velocity, ".3f"),
        )


class Lines:
    def __init__(self, steps: int, stream, every: float = 5.0):
        self.stream, self.every, self.status = stream, every, _Status(steps)
        self.shown, self.due = -float("inf"), False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.due:
            self._show()

    def __call__(self, line: dict) -> None:
        self.status.add(line)
        self.due = True
        if line["kind"] == "evaluation" or time.monotonic() - self.shown >= self.every:
            self._show()

    def _show(self) -> None:
        self.shown, self.due = time.monotonic(), False
        parts = []
        for domain in self.status.weights:
            weight, training, heldout, change, velocity = self.status.cells(domain)
            part = f"{domain} {weight} loss {training} held-out {heldout} ({change})"
            parts.append(part + (f" V {velocity}" if self.status.velocity else ""))
        print(f"{self.status.headline()}  |  " + "  |  ".join(parts), file=self.stream, flush=True)
        for note in self.status.notes:
            print(f"  {note}", file=self.stream, flush=True)
        self.status.notes = []


class Table:
    def __init__(self, steps: int, stream):
        from rich.console import Console
        from rich.live import Live

        self.status = _Status(steps)
        self.live = Live(console=Console(file=stream), refresh_per_second=4)

    def __enter__(self):
        self.live.start()
        return self

    def __exit__(self, *exception):
        self.live.stop()

    def __call__(self, line: dict) -> None:
        self.status.add(line)
        self.live.update(self._table())

    def _table(self):
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False)
        grid.add_column("domain")
        for name in ("weight", "loss", "held-out", "change") + (("velocity",) if self.status.velocity else ()):
            grid.add_column(name, justify="right")
        for domain in self.status.weights:
            grid.add_row(Text(domain), *self.status.cells(domain)[: len(grid.columns) - 1])
        return Group(Text(self.status.headline()), grid, *(Text(note, style="yellow") for note in self.status.notes))
