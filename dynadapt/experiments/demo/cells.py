"""The demo's side of worker.py: asks for a cell, and hears of its progress, its end or what ended it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

from dynadapt.common import children
from dynadapt.experiments.sweep import ended_by
from dynadapt.runs.rundir import RunError


class CellFailed(RunError):
    """A cell ended otherwise than it should; the message says how."""


class Cells:
    """Runs requests one after the other. KeyboardInterrupt when this process got SIGINT or SIGTERM meanwhile, once the cell has stopped.

    SIGTERM is handed on; SIGINT reaches the cell from the terminal by itself.
    """

    def __enter__(self):
        self.process = subprocess.Popen(
            children.command("dynadapt.experiments.demo.worker"),
            env=children.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.asked: list[int] = []
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        for close in (self.process.stdin.close, self.process.stdout.close):
            try:
                close()
            except OSError:
                pass
        self.process.terminate()  # it may still be importing; a cell that is left follows it
        self.process.wait()

    def _stop(self, number, frame) -> None:
        self.asked.append(number)
        if number == signal.SIGTERM:
            self.process.terminate()  # the cell follows it

    def ask(self, on_event: Callable[[dict], None] = lambda event: None, **request):
        """The answer. Raises CellFailed, which says why there is none."""
        answer = error = None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended, and its last words are still to be read
        for line in self.process.stdout:
            told = json.loads(line)
            if "fatal" in told:
                raise RunError(told["fatal"])
            if "event" in told:
                on_event(told["event"])
            answer, error = told.get("answer", answer), told.get("error", error)
            if "end" in told:
                break
        else:
            told = {"end": self.process.wait()}
        if self.asked:
            raise KeyboardInterrupt
        if told["end"]:
            raise CellFailed(error or (ended_by(-told["end"]) if told["end"] < 0 else f"exit status {told['end']}"))
        return answer
