"""The command lines that put a profiler around ``dynadapt profile``: what they measure is the timed calls and nothing before."""

from __future__ import annotations

import shlex
import sys

EVENTS = ("task-clock", "cycles", "instructions", "cache-references", "cache-misses", "branch-misses", "context-switches", "page-faults")


def itself(options: list[str]) -> str:
    return shlex.join([sys.executable, "-m", "dynadapt", "profile", *options])


def ncu(options: list[str], name: str, whole_step: bool) -> str:
    """Two lines: measure, and turn the report into the CSV that --parse-ncu reads. Of a step all kernels, of an op ours alone."""
    ours = "" if whole_step else " -k regex:dynadapt"
    measure = (
        "DYNADAPT_NVTX=1 ncu --nvtx --profile-from-start off --graph-profiling node --clock-control none --set full "
        f"--import-source yes{ours} -f -o {shlex.quote(name)}"
    )
    convert = f"ncu --import {shlex.quote(name + '.ncu-rep')} --csv --page raw > {shlex.quote(name + '.csv')}"
    return f"{measure} {itself(options)}\n{convert}"


def nsys(options: list[str], name: str) -> str:
    return (
        "DYNADAPT_NVTX=1 nsys profile -t cuda,nvtx,osrt --capture-range=cudaProfilerApi --capture-range-end=stop "
        f"--cuda-graph-trace=node -f true -o {shlex.quote(name)} {itself(options)}"
    )


def perf(options: list[str]) -> str:
    """Counters are off at the start (-D -1) and on while the program says so through two pipes."""
    return (
        f"d=$(mktemp -d) && mkfifo $d/ctl $d/ack && perf stat -D -1 --control fifo:$d/ctl,$d/ack -e {','.join(EVENTS)} "
        f"{itself(options)} --perf-control $d/ctl,$d/ack; rm -r $d"
    )
