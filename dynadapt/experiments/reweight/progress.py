"""Live progress of a reweighting run: a table of domains on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys

from dynadapt.runs.progress import Lines, Pace, Status


def progress_for(steps: int, stream=None, every: float = 5.0):
    """A Table when the stream is a terminal, else Lines. Both are context managers, called with the run's lines of metrics."""
    stream, status = stream or sys.stdout, Reweighting(steps)
    return Table(stream, status) if stream.isatty() else Lines(stream, every, status)


class Reweighting(Status):
    """What is known by now, from the lines so far."""

    def __init__(self, steps: int):
        self.steps, self.pace, self.token_pace = steps, Pace(), Pace()
        self.weights, self.losses, self.heldout, self.change, self.velocity = {}, {}, {}, {}, {}
        self.notes: list[str] = []

    def add(self, line: dict) -> bool:
        step, tokens, seconds, began = line["step"], line["total_tokens"], line["total_seconds"], line["total_seconds"] - line["seconds"]
        self.pace.start(step - (line["kind"] == "step"), began)
        self.token_pace.start(tokens - line.get("tokens", 0), began)
        rate = self.pace.rate(step, seconds)
        self.seconds_left = (self.steps - step) / rate if rate else None
        self.weights = line["weights"]
        if line["notes"]:
            self.notes = line["notes"]
        if line["kind"] == "step":
            self.said = f"  loss {line['loss']:.4f}"
            self.losses.update(line["losses"])
        else:
            self.heldout, self.change, self.velocity = line["heldout"], line["change"], line["velocity"] or {}
        speed = f"{self.token_pace.rate(tokens, seconds):,.0f} tokens/s"
        self.count = f"step {step}/{self.steps}  {tokens:,} tokens{self.said}  {speed}  {self.left}"
        return True

    def at_once(self, line: dict) -> bool:
        return line["kind"] == "evaluation"

    def line(self) -> str:
        """Notes, below it, are said once."""
        parts = [self.count]
        for domain in self.weights:
            weight, training, heldout, change, velocity = self.cells(domain)
            part = f"{domain} {weight} loss {training} held-out {heldout} ({change})"
            parts.append(part + (f" V {velocity}" if self.velocity else ""))
        notes, self.notes = self.notes, []
        return "\n".join(["  |  ".join(parts), *(f"  {note}" for note in notes)])

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


class Table:
    def __init__(self, stream, status: Reweighting):
        from rich.console import Console
        from rich.live import Live

        self.status = status
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
        return Group(Text(self.status.count), grid, *(Text(note, style="yellow") for note in self.status.notes))
