"""Providers take turns: which of their settings is faster, how long until the medians are sure, and whether something else ran.

Every setting of a provider (its numbers of threads) is timed in the same rounds as everything else, because a choice made
beforehand, in a few steps on a noisy machine, has moved a ratio by a factor of two. One that is clearly behind is dropped.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field

PROBE = 3  # rounds before a setting may be dropped
BEHIND = 1.25  # times the provider's best median: slower than this is dropped
WIDE = 1.10  # 80% quantile over 20%: the rounds go on while a provider's are further apart, ...
MOST = 3  # ... up to so many times the rounds that were asked for
BUSY = 0.05  # share of the machine that others may use before it is said


@dataclass
class Runner:
    """A provider's process with one number of threads."""

    name: str
    worker: object
    threads: int
    seconds: list[float] = field(default_factory=list)

    def time(self, steps: int) -> None:
        if self.worker.threads != self.threads:
            self.worker.ask(f"threads {self.threads}")
            self.worker.threads = self.threads
            self.worker.time(1)  # the new team's first step
        self.seconds += self.worker.time(steps)["seconds"]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def runners_of(name: str, workers: list, choices: tuple[int, ...]) -> list[Runner]:
    """One a number of threads: of several processes each has its own, a single one can be set to any of `choices`."""
    if len(workers) > 1:
        return [Runner(name, worker, worker.threads) for worker in workers]
    return [Runner(name, workers[0], threads) for threads in choices]


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
    known = [load for load in loads if load is not None]
    return {"rounds": turn, "other_load": statistics.median(known) if known else None, "dropped": dropped}


def best_of(runners: list[Runner]) -> dict[str, Runner]:
    """The runner with the lowest median, by provider."""
    best: dict[str, Runner] = {}
    for runner in runners:
        if runner.seconds and (runner.name not in best or runner.median < best[runner.name].median):
            best[runner.name] = runner
    return best


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    pick = lambda q: ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]  # noqa: E731
    return {"median": statistics.median(ordered), "p20": pick(0.2), "p80": pick(0.8), "best": ordered[0], "runs": len(ordered)}


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
