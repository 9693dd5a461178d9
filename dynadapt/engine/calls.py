"""One call at a time on one engine, in the process that made it, and none on weights that a failed call left half moved."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps

import torch


@contextmanager
def plain_torch():
    """Whatever modes the caller is in: inside, tensors are made on the CPU where no device is named, products keep their dtype
    (no autocast), and what is made can still be changed by a later call (no inference mode)."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class Calls:
    """Every public method that reads or changes an engine's state runs inside ``call``.

    A call first checks its arguments and computes; from ``moving`` on it changes state. A failure before that has changed
    nothing, and the engine serves on. A failure after it leaves the engine damaged: every call is refused by name until one that
    ``mends`` has put a whole state back. Any thread may call, but not while another call runs, be it the caller's own (a callback).
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._running = self._damage = None
        self._moving = False

    def __reduce__(self):  # a copy of an engine is another engine: it takes calls of its own
        return _copied, (self._damage,)

    @contextmanager
    def call(self, name: str, mends: bool = False):
        """Runs a block as the call ``name``.

        Raises:
            RuntimeError: another call runs; a failed one left its state half moved; the process was forked.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{name}: this engine was made in process {self._process} and this is process {os.getpid()}, which "
                "was forked from it: make an engine here"
            )
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                f"{name}: the engine is in another call ({self._running or 'one that begins'}); calls on one engine must not overlap"
            )
        try:
            if self._damage is not None and not mends:
                raise RuntimeError(
                    f"{name}: a failed {self._damage} left this engine's weights half moved; restore() a saved state, or make a new engine"
                )
            self._running, self._moving = f"{name} in thread {threading.current_thread().name!r}", False
            try:
                with plain_torch():
                    yield
            except BaseException as error:
                if self._moving:
                    self._damage = f"{name} ({type(error).__name__}: {error})"
                raise
            if mends:
                self._damage = None
        finally:
            self._running = None
            self._lock.release()

    def moving(self) -> None:
        """From here on the running call changes state."""
        self._moving = True

    def still(self) -> None:
        """All that the running call has changed is undone."""
        self._moving = False

    @property
    def damage(self) -> str | None:
        """The call that left the engine damaged, and its error."""
        return self._damage


def _copied(damage) -> Calls:
    calls = Calls()
    calls._damage = damage
    return calls


def one_call(method):
    """A method of an engine that is one of its calls."""

    @wraps(method)
    def call(self, *args, **kwargs):
        with self.calls.call(method.__name__):
            return method(self, *args, **kwargs)

    return call


def on_device(method):
    """The engine's own GPU is the current one inside: kernels launch on the current device."""

    @wraps(method)
    def call(self, *args, **kwargs):
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return method(self, *args, **kwargs)

    return call
