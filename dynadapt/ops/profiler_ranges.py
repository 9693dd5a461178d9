"""Named ranges for profilers: NVTX ranges in the domain "dynadapt", and the same names in torch.profiler.

Off unless ``DYNADAPT_NVTX=1`` was set before the first op, or ``enable`` was called before the engine was made; then an engine's
ops are wrapped, and without it they are not, so that ranges cost nothing. The names are "step" (or
"forward_backward" and "optim_step"), its parts "forward", "score", "backward" and "memory", and in them every op by its name. Native ops open their NVTX ranges themselves (csrc/core/range.h); the
others need the package nvtx. A step that runs as a CUDA graph shows "step" alone on the host.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

from torch.profiler import record_function

DOMAIN = "dynadapt"
VARIABLE = "DYNADAPT_NVTX"
_state: dict[str, Any] = {"on": False, "domain": None}  # domain: of the package nvtx


def enable() -> None:
    """Ranges from now on, in engines that are made later. Warns where the package nvtx is missing: Python's ranges then show in
    torch.profiler alone."""
    os.environ[VARIABLE] = "1"  # the native library looks at it once, at its first op
    try:
        import nvtx
    except ImportError:
        warnings.warn(
            f"{VARIABLE}=1 without the package nvtx: ranges of Python code show in torch.profiler only; install nvtx", stacklevel=2
        )
    else:
        _state["domain"] = nvtx.get_domain(DOMAIN)
    _state["on"] = True


def enabled() -> bool:
    return _state["on"]


def status() -> dict[str, str]:
    """What shows where: "python" and "native" ranges, each "on" or why not."""
    from .dispatch import native_module

    off = f"{VARIABLE} is not 1"
    python = "on" if _state["domain"] is not None else "in torch.profiler only: the package nvtx is not installed"
    return {"python": python if enabled() else off, "native": native_module().nvtx_status()}


@contextmanager
def _nvtx(name: str):
    domain = _state["domain"]
    if domain is None:
        yield
        return
    domain.push_range(domain.get_event_attributes(message=name))
    try:
        yield
    finally:
        domain.pop_range()


@contextmanager
def span(name: str, nvtx: bool = True):
    """A range while the block runs; without ``nvtx`` in torch.profiler only."""
    if not enabled():
        yield
    elif nvtx:
        with _nvtx(name), record_function(name):
            yield
    else:
        with record_function(name):
            yield


def ranged(name: str):
    """A function whose calls are ranges."""

    def decorate(function):
        @wraps(function)
        def call(*args, **kwargs):
            if not _state["on"]:
                return function(*args, **kwargs)
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


def named(choice):
    """An op's ``Choice`` (ops/dispatch.py) with its calls as ranges; the choice itself while ranges are off."""
    if not enabled():
        return choice
    from .dispatch import native_module

    own = choice.backend == "cpu" and native_module().nvtx_status() == "on"  # the native op opens its NVTX range itself

    @wraps(choice.function)
    def call(*args):
        with span(choice.op, nvtx=not own):
            return choice.function(*args)

    return replace(choice, function=call)


if os.environ.get(VARIABLE, "0") not in ("", "0", "1"):
    raise ValueError(f"{VARIABLE}={os.environ[VARIABLE]!r}: expected 0 or 1")
if os.environ.get(VARIABLE) == "1":
    enable()
