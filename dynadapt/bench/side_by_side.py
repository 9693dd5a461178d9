"""Providers side by side: each a process of its own (worker.py is its other end), timed in turn until the medians are sure.

Every setting of a provider (its numbers of threads) is timed in the same rounds as everything else, because a choice made
beforehand, in a few steps on a noisy machine, has moved a ratio by a factor of two. One that is clearly behind rests, and is looked at
again every few rounds: what a neighbour made slow comes back when the neighbour has gone.

Rounds go on until every provider's median is sure to 5% either way, or there were three times as many as were asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from dynadapt.common import children

from .quantiles import median_interval, quantiles

OURS = "dynadapt"
PROBE = 3  # rounds before a setting may rest, and its last runs that are looked at
BEHIND = 1.25  # times the provider's best median: where its last runs are all slower than this, a setting rests, ...
AGAIN = 4  # ... but for every so many rounds
SURE = 0.10  # width of the 95% interval of a median, in medians: the rounds go on while a provider's is wider, ...
MOST = 3  # ... up to so many times the rounds that were asked for
BUSY = 0.05  # share of the machine that others may use before it is said
OFTEN = 0.25  # share of the rounds that others may be busy in before it is said, however idle they are in the others


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
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # it died after its last answer
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
        with contextlib.suppress(BrokenPipeError):  # what a dead one was not told
            self.process.stdin.close()
        if self.process.poll() is None:
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
    def setting(self) -> str:
        return ", ".join([f"{self.threads} thread{'s' * (self.threads > 1)}", *(f"{key} {value}" for key, value in self.what.items())])

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def runners_of(name: str, workers: list[Worker], choices: tuple[int, ...], **what) -> list[Runner]:
    """One a number of threads: of several processes each has its own, a single one can be set to any of `choices`. what: arguments of
    the worker's "time"."""
    if len(workers) > 1:
        return [Runner(name, worker, worker.threads, what) for worker in workers]
    return [Runner(name, workers[0], threads, what) for threads in choices]


def race(runners: list[Runner], rounds: int, steps: int = 1, after=lambda turn, load: None, own: tuple[int, ...] = ()) -> dict:
    """Times them in turn; `after(turn, load)` is called after each round, `own` are further processes that are not others.

    Odd rounds go backwards, so that nobody always follows the same one. Returns {"rounds", "settled", "other_load", "busy_rounds",
    "resting"}. settled: the rounds ended because every median was sure. other_load: the median share of the machine's time, over the
    rounds, that went to processes that are not the providers'; busy_rounds: in how many it was more than BUSY. resting: settings that
    were behind at the end.
    """
    resting: list[Runner] = []
    loads, turn = [], 0
    while turn < rounds or (turn < MOST * rounds and not settled(runners)):
        meter = Meter([*(r.worker.process.pid for r in runners), *own])
        racing = runners if turn % AGAIN == AGAIN - 1 else [r for r in runners if r not in resting]
        for runner in racing[:: -1 if turn % 2 else 1]:
            runner.time(steps)
        loads.append(meter.others())
        turn += 1
        if turn >= PROBE:
            best = best_of(runners)
            resting = [r for r in runners if r is not best[r.name] and min(r.seconds[-PROBE:]) > BEHIND * best[r.name].median]
        after(turn, loads[-1])
    return {
        "rounds": turn,
        "settled": settled(runners),
        "other_load": median_load(loads),
        "busy_rounds": sum(load is not None and load > BUSY for load in loads),
        "resting": [f"{r.name}, {r.setting}" for r in resting],
    }


def settled(runners: list[Runner]) -> bool:
    """Whether the median of each provider's best setting is sure."""
    return not any(unsure(best.seconds) for best in best_of(runners).values())


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


def unsure(seconds: list[float]) -> bool:
    low, high = median_interval(seconds)
    return high - low > SURE * statistics.median(seconds)


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
    """What is to be known of a race besides its times: settings that were behind, medians that are not sure, and that something else ran."""
    found = []
    if result.get("resting"):
        found.append(f"clearly slower, and timed in every {AGAIN}th round only: {'; '.join(result['resting'])}")
    if result.get("settled") is False:
        found.append(
            f"warning: after {result['rounds']} rounds not every median is sure to {SURE / 2:.0%} either way; take more --rounds, or a "
            "quieter machine"
        )
    load, busy = result["other_load"] or 0.0, result.get("busy_rounds", 0)
    if load > BUSY or busy > OFTEN * result["rounds"]:
        often = f", more than {BUSY:.0%} of it in {busy} of {result['rounds']} rounds" if busy else ""
        found.append(f"warning: other processes used {load:.0%} of this machine while this ran{often}; a quiet machine gives other ratios")
    return found


def check_out(path: str | Path | None, option: str = "out") -> None:
    """What `write` would refuse only after everything was measured; the folder is made where it isn't there. None: nothing is written.

    Raises:
        ValueError: no file can be written there.
    """
    if path is None:
        return
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--{option} {path}: expected a file that can be written; {folder}: {error.strerror}") from error
    if not path or Path(path).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "it is no file's name" if not path else "it is a directory" if Path(path).is_dir() else f"{folder} is not writable"
        raise ValueError(f"--{option} {path}: expected a file that can be written; {why}")


def write(path: str | Path, result: dict) -> None:
    """The results file, whole or not at all; its folder is made where it isn't there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    part = Path(path).with_name(Path(path).name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    os.replace(part, path)
