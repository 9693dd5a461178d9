"""Providers side by side: each a process of its own (worker.py is its other end), timed in turn until the medians are sure.

Every setting of a provider (its numbers of threads) is timed in the same rounds as everything else, because a choice made
beforehand, in a few steps on a noisy machine, has moved a ratio by a factor of two. One that is clearly behind is dropped.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from dynadapt.common import children

from .quantiles import quantiles

OURS = "dynadapt"
PROBE = 3  # rounds before a setting may be dropped
BEHIND = 1.25  # times the provider's best median: slower than this is dropped
WIDE = 1.10  # 80% quantile over 20%: the rounds go on while a provider's are further apart, ...
MOST = 3  # ... up to so many times the rounds that were asked for
BUSY = 0.05  # share of the machine that others may use before it is said


class Worker:
    """A provider's process. ``ask`` sends a command and waits for the answer."""

    def __init__(
        self,
        provider: str,
        command: list[str],
        options: dict,
        threads: int,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ):
        self.provider, self.threads = provider, threads
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        started = time.time()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            env=children.environment(OMP_NUM_THREADS=str(threads), **{"OMP_WAIT_POLICY": "passive", **(environment or {})}),
            cwd=cwd,
        )
        self.begun = self._exchange({**options, "provider": provider, "threads": threads})
        self.first_step_seconds = self.begun["ready_at"] - started

    def _exchange(self, line: dict) -> dict:
        """Raises RuntimeError with the end of the process's errors when it has died."""
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.log.seek(0)
            tail = "\n".join(self.log.read().strip().splitlines()[-12:])
            raise RuntimeError(f"provider {self.provider} ended with status {self.process.returncode}:\n{tail}")
        return json.loads(answer)

    def ask(self, do: str, **arguments) -> dict:
        return self._exchange({"do": do, **arguments})

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class ModuleWorker(Worker):
    """One that `python -m module` is, off the network; compiled code of earlier runs, which would hide what compiling costs, is not there."""

    def __init__(self, provider: str, module: str, options: dict, threads: int, **environment: str):
        self.compile_cache = tempfile.TemporaryDirectory()
        offline = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": self.compile_cache.name}
        super().__init__(provider, children.command(module), options, threads, {**offline, **environment})

    def close(self) -> None:
        super().close()
        self.compile_cache.cleanup()


# ---- taking turns


@dataclass
class Runner:
    """A provider's process with one number of threads; what of it is timed, where it has more than one thing."""

    name: str
    worker: Worker
    threads: int
    what: dict = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def time(self, runs: int) -> list[float]:
        """Seconds of each, which also count."""
        if self.worker.threads != self.threads:
            self.worker.ask("threads", count=self.threads)
            self.worker.threads = self.threads
            self.worker.ask("time", runs=1, **self.what)  # the new team's first step
        found = self.worker.ask("time", runs=runs, **self.what)["seconds"]
        self.seconds += found
        return found

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def runners_of(name: str, workers: list[Worker], choices: tuple[int, ...], **what) -> list[Runner]:
    """One a number of threads: of several processes each has its own, a single one can be set to any of `choices`."""
    if len(workers) > 1:
        return [Runner(name, worker, worker.threads, what) for worker in workers]
    return [Runner(name, workers[0], threads, what) for threads in choices]


def race(runners: list[Runner], rounds: int, steps: int = 1, after=lambda turn: None) -> dict:
    """Times them in turn and returns {"rounds", "other_load", "dropped"}; `after(turn)` is called after each round.

    Odd rounds go backwards, so that nobody always follows the same one. other_load: the median share of the machine's time, over
    the rounds, that went to processes that are not the providers'.
    """
    racing, loads, dropped, turn = list(runners), [], [], 0
    while turn < rounds or (turn < MOST * rounds and any(wide(r.seconds) for r in best_of(racing).values())):
        meter = Meter([r.worker.process.pid for r in racing])
        for runner in racing[:: -1 if turn % 2 else 1]:
            runner.time(steps)
        loads.append(meter.others())
        turn += 1
        if turn == PROBE:
            best = best_of(racing)
            behind = [r for r in racing if r.median > BEHIND * best[r.name].median]
            racing = [r for r in racing if r not in behind]
            dropped = [f"{r.name}, {r.threads} threads" for r in behind]
        after(turn)
    return {"rounds": turn, "other_load": median_load(loads), "dropped": dropped}


def median_load(loads: list[float | None]) -> float | None:
    known = [load for load in loads if load is not None]
    return statistics.median(known) if known else None


def best_of(runners: list[Runner]) -> dict[str, Runner]:
    """The runner with the lowest median, by provider."""
    best: dict[str, Runner] = {}
    for runner in runners:
        if runner.seconds and (runner.name not in best or runner.median < best[runner.name].median):
            best[runner.name] = runner
    return best


def spread(seconds: list[float]) -> dict[str, float]:
    return {**quantiles(seconds), "best": min(seconds), "runs": len(seconds)}


def wide(seconds: list[float]) -> bool:
    q = quantiles(seconds)
    return q["p80"] > WIDE * q["p20"]


class Meter:
    """How much of the machine others use, from /proc: busy time of all processors less that of some processes and this one."""

    def __init__(self, pids: list[int]):
        self.pids = [*dict.fromkeys(pids), os.getpid()]
        self.start = self._read()

    def _read(self) -> tuple[float, float, float] | None:
        """(all, busy, ours) in clock ticks; what a hypervisor took away (steal) counts as busy."""
        try:
            with open("/proc/stat", encoding="ascii") as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
            ours = 0
            for pid in self.pids:
                with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                    ours += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
        except (OSError, ValueError, IndexError):
            return None
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], ours

    def others(self) -> float | None:
        """Share of all processors' time since the start, 0 to 1; None where the system does not tell."""
        now = self._read()
        if now is None or self.start is None or now[0] <= self.start[0]:
            return None
        total, busy, ours = (a - b for a, b in zip(now, self.start))
        return min(1.0, max(0.0, (busy - ours) / total))


# ---- what is said and written


def milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.2f}"


def remarks(result: dict) -> list[str]:
    """What is to be known of a race besides its times: settings that were dropped, and that something else ran."""
    found = []
    if result.get("dropped"):
        found.append(f"clearly slower, and dropped after the first rounds: {'; '.join(result['dropped'])}")
    if result["other_load"] is not None and result["other_load"] > BUSY:
        load = f"{result['other_load']:.0%}"
        found.append(f"warning: other processes used {load} of this machine while this ran; a quiet machine gives other ratios")
    return found


def write(path: str | Path, result: dict) -> None:
    """The results file, its folder made where it isn't there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
