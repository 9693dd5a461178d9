"""How a run is stopped between two segments or steps: by a signal, or by its callback. Either way it is saved and can go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from .whole_files import RunError

CALLBACK = 1 << 16  # no signal has this number
ECHO = 0.2  # seconds in which SIGTERMs are one: a parent that ends sends SIGTERM once for each of its threads


class Interrupted(RunError):
    """Stopped by a signal or its callback, after the segment in progress was finished and saved. why: by what, without where."""

    def __init__(self, why: str, where: str = ""):
        super().__init__(f"{why} {where}".strip())
        self.why = why


class StopRun(Exception):
    """Raised by a run's callback: the run is saved and ends with Interrupted; with `resume` it goes on."""


class Stop:
    """Who asked for a stop: `signal`, a signal's number or CALLBACK; `error`: what the callback raised."""

    signal: int | None = None
    error: Exception | None = None

    def tell(self, callback: Callable[[dict], object], event: dict) -> None:
        """Calls it with what was just written. One that raises, or returns False, asks for a stop and is not called again."""
        if self.signal == CALLBACK:
            return
        try:
            if callback(event) is False:
                self.signal = CALLBACK
        except StopRun:
            self.signal = CALLBACK
        except Exception as error:
            self.signal, self.error = CALLBACK, error

    def why(self) -> str:
        return "stopped by " + ("its callback" if self.signal == CALLBACK else signal.Signals(self.signal).name)

    def reason(self, where: str) -> Exception:
        """What a run that was stopped raises, once it is saved."""
        return self.error or Interrupted(self.why(), where)


@contextmanager
def signals_to(handler: Callable):
    """SIGINT and SIGTERM go to this handler in the block; gives {signal: the handler before}."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, each in before.items():
            signal.signal(number, each)


@contextmanager
def interruptible():
    """SIGINT and SIGTERM ask for a stop after the segment in progress; a second one stops at once (of SIGTERM one later than `ECHO`)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    asked = None

    def ask(number, frame):
        nonlocal asked
        if asked is None:
            asked, stop.signal = time.monotonic(), number
        elif number == signal.SIGINT or time.monotonic() - asked > ECHO:
            for each, handler in before.items():
                signal.signal(each, handler)
            os.kill(os.getpid(), number)

    with signals_to(ask) as before:
        yield stop
