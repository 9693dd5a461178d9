"""A provider in a process of its own: obeys a line of JSON at a time and answers each with one.

The first line holds its options; then {"do": "threads", "count": n}, {"do": "time", "runs": n}, {"do": "ceiling"}, and what a
benchmark adds to check results. A process waiting for its turn uses no processor, so providers take turns without disturbing each
other, and each has its own peak memory and its own threads.

This file needs torch alone: a worker that runs on another revision's dynadapt has it from this one's tree.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


class Worker:
    """What a provider of any benchmark does. A benchmark's own adds `step()`, or has its own `time`, and commands that make and check."""

    COMMANDS = ("threads", "time", "ceiling")

    def __init__(self, options: dict, native: bool):
        """options: "dtype" and "threads" among them. native: dynadapt's own threads are set too, not torch's alone."""
        self.options, self.native = options, native
        self.dtype = DTYPES.get(options["dtype"])  # None: numbers of a file's own kinds
        self.threads(options["threads"])

    def begin(self) -> dict:
        """What comes before the first command, for most a first step; its answer goes with the first."""
        return {}

    def threads(self, count: int) -> dict:
        self.count = count
        torch.set_num_threads(count)
        if self.native:
            from dynadapt import _C

            _C.set_num_threads(count)
        return {}

    def flops(self) -> int:
        """Of the last step. The ledger is dynadapt's: rates of all providers use its count."""
        return 0

    def time(self, runs: int) -> dict:
        """Wall seconds of each of `runs` steps."""
        return {"seconds": timed(self.step, runs), "peak_memory_bytes": peak_memory(), "flops": self.flops()}

    def ceiling(self) -> dict:
        """What this machine reaches at most in this dtype, with all threads that this process was started with."""
        from dynadapt.bench.ceiling import gemm_ceiling, instruction_peak

        most = self.options["threads"]
        found = {**gemm_ceiling(self.dtype, most), "peak_gflops": instruction_peak(self.dtype, most)}
        self.threads(self.count)
        return found


def timed(call, runs: int, before=lambda: None) -> list[float]:
    """Wall seconds of each of `runs` calls, `before()` being called before each, untimed."""
    seconds = []
    for _ in range(runs):
        before()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_memory() -> int:
    """Bytes of this process's largest resident size. Not getrusage's, which begins with that of the process that started this one."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def serve(make) -> None:
    """The process: reads its options, `make(options)` is the worker, then obeys until its input ends.

    Raises:
        ValueError: a command that the worker does not know.
    """
    options = json.loads(sys.stdin.readline())
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def answer(record: dict) -> None:
        print(json.dumps(record), file=channel, flush=True)

    worker = make(options)
    answer({**worker.begin(), "ready_at": time.time()})
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        if do not in worker.COMMANDS:
            raise ValueError(f"command {do!r}: give one of {', '.join(worker.COMMANDS)}")
        answer(getattr(worker, do)(**command))
