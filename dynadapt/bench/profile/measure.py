"""Timed calls: warmed up, a fixed number of them, seen by profilers as one range."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dynadapt.bench.quantiles import quantiles
from dynadapt.ops.dispatch import native_module
from dynadapt.ops.profiler_ranges import span


@dataclass(frozen=True)
class Runs:
    """How often a call is made before it is timed and while it is.

    ``perf``: two pipes, which `perf stat --control` reads and writes.
    """

    warmup: int = 3
    iters: int = 20
    perf: tuple[str, str] | None = None


@contextmanager
def _perf_counts(pipes: tuple[str, str] | None):
    """perf's counters are on inside."""
    if pipes is None:
        yield
        return
    with open(pipes[0], "w") as control, open(pipes[1]) as answers:

        def tell(word):
            control.write(word + "\n")
            control.flush()
            if "ack" not in answers.readline():
                raise RuntimeError(f"perf did not acknowledge {word!r} on {pipes[1]}")

        tell("enable")
        yield
        tell("disable")


@contextmanager
def _cuda_profiler(device: torch.device):
    """What ncu and nsys take for the beginning and the end."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()


def timed(call, runs: Runs, device: torch.device) -> dict:
    """Milliseconds of ``call``: {"median_ms", "p20_ms", "p80_ms", "clock", "iters", "warmup"}; caches are as the last call left
    them. The clock is the device's on a GPU, else the thread's own where one thread does all: other processes then don't count.
    """
    for _ in range(runs.warmup):
        call()
    clock, once = _clock(device)
    with _perf_counts(runs.perf), _cuda_profiler(device), span("profile"):
        milliseconds = [once(call) for _ in range(runs.iters)]
    return {**quantiles(milliseconds, "_ms"), "clock": clock, "iters": runs.iters, "warmup": runs.warmup}


def _clock(device: torch.device):
    """(its name, a function that times one call in milliseconds)."""
    if device.type == "cuda":
        return "device", _once_on_cuda
    alone = torch.get_num_threads() == 1 and native_module().num_threads() == 1
    now = time.thread_time if alone else time.perf_counter

    def once(call) -> float:
        start = now()
        call()
        return 1e3 * (now() - start)

    return "thread" if alone else "wall", once


def _once_on_cuda(call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
