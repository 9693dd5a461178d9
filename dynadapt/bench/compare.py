"""A whole benchmark of a step: providers are started, checked against float64, and only then timed side by side.

What is compared is a `Benchmark`; adapt steps (step.py) and training steps in context (experiments/icl/bench.py) are two.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import neighbour
from .side_by_side import BUSY, OURS, ModuleWorker, Runner, Worker, best_of, milliseconds, race, runners_of, spread

WARM = 3  # steps between the first one and the reading of the peak memory


@dataclass(frozen=True)
class Provider:
    """What a process is told.

    compiled: it fixes its number of threads when it compiles, so it gets a process for each. settings: arguments of its "time", which
    race each other as numbers of threads do. bounds: how far from float64 it may be, by measure, whose arithmetic is coarser than its
    dtype says; None: the yardstick's rule.
    """

    name: str
    options: dict
    compiled: bool = False
    settings: tuple[dict, ...] = ({},)
    bounds: dict[str, float] | None = None


@dataclass(frozen=True)
class Benchmark:
    """What is compared, and how its results are checked.

    module: run as every provider's process; its worker also answers {"do": "check", "out": FILE} with a file of tensors, and what it
        answers beside that goes into the provider's row.
    rows: what is timed, by its name in the results; rows of OURS first.
    truth: the provider in float64 that all are held against.
    yardstick: a name; nothing is timed unless dynadapt is no further from the truth than this provider in the same dtype is, and
        the others at most twice as far. slack: how many times as far dynadapt may be; more than 1 where the yardstick computes in more than
        that dtype, as autocast does, which keeps the residual in float32. floor: how far they may be anyway, by measure: the tensor whose root mean square is
        measured (relative to its mean, with `relative`), and "gradient", the relative 2-norm over all others.
    choices: numbers of threads, the largest first. ceilings: measure them, which is for CPUs.
    busy: all is timed once more beside a process that keeps a core busy, as rows of their own.
    """

    module: str
    rows: dict[str, Provider]
    truth: Provider
    yardstick: str
    floor: dict[str, float]
    choices: tuple[int, ...]
    relative: bool = False
    ceilings: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    busy: bool = False
    slack: float = 1.0


def thread_choices() -> tuple[int, ...]:
    """All cores, and one."""
    return tuple(dict.fromkeys((len(os.sched_getaffinity(0)), 1)))


def compare(benchmark: Benchmark, rounds: int, steps: int, say: Callable[[str], None]) -> dict:
    """The whole benchmark, `steps` at a time in a round:

    1. the truth is written;
    2. every provider loads and makes its first step, its memory is read after a few more, and its results are held to the truth;
    3. errors are held to the yardstick's;
    4. all take turns, and the ceilings are measured between the rounds; then all take turns again, with a core busy.

    Returns what race() does, {"flops_per_step", "ceiling" and "peak_gflops" by dtype, "providers": rows} and, of the second race,
    "busy_neighbour".

    Raises:
        RuntimeError: a provider ended, or is too far from float64.
    """
    with tempfile.TemporaryDirectory() as folder:
        field = _Field(benchmark, Path(folder), say)
        try:
            field.write_truth()
            for row, provider in benchmark.rows.items():
                field.enter(row, provider)
            check(field.rows, field.yardsticks(), benchmark.floor, benchmark.slack)
            result = field.race(rounds, steps)
            if benchmark.busy:
                result["busy_neighbour"] = field.race_beside(rounds, steps)
        finally:
            for worker in field.workers:
                worker.close()
    return {**result, "providers": field.rows}


class _Field:
    """The providers of a benchmark, as far as they have come."""

    def __init__(self, benchmark: Benchmark, folder: Path, say: Callable[[str], None]):
        self.benchmark, self.say = benchmark, say
        self.truth, self.found = folder / "truth.safetensors", folder / "found.safetensors"
        self.rows: dict[str, dict] = {}
        self.runners: list[Runner] = []
        self.workers: list[ModuleWorker] = []
        self.ours: dict[str, Worker] = {}  # by dtype
        self.flops = 0  # of one step

    def _start(self, provider: Provider, threads: int, environment: dict[str, str]) -> ModuleWorker:
        self.workers.append(ModuleWorker(provider.name, self.benchmark.module, provider.options, threads, **environment))
        return self.workers[-1]

    def _checked(self, worker: Worker) -> dict:
        """{"error": by measure} and what else the worker says of its results."""
        said = worker.ask("check", out=str(self.found))
        return {**said, "error": difference(self.found, self.truth, next(iter(self.benchmark.floor)), self.benchmark.relative)}

    def write_truth(self) -> None:
        self.say("float64 truth: transformers")
        exact = self._start(self.benchmark.truth, self.benchmark.choices[0], {})
        exact.ask("check", out=str(self.truth))
        exact.close()

    def enter(self, row: str, provider: Provider) -> None:
        choices, dtype = self.benchmark.choices, provider.options["dtype"]
        settings = choices if provider.compiled else choices[:1]
        threads = f" with {' and '.join(map(str, settings))} threads" if len(settings) > 1 else ""
        self.say(f"{provider.name}: starting in {dtype}{threads}")
        own = [self._start(provider, count, self.benchmark.environment) for count in settings]
        warm = [worker.ask("time", runs=WARM, **provider.settings[0]) for worker in own]
        self.rows[row] = {
            "provider": provider.name,
            "dtype": dtype,
            "first_step_seconds": own[0].first_step_seconds,
            "peak_memory_bytes": warm[0]["peak_memory_bytes"],
            **self._checked(own[0]),
        }
        if provider.bounds is not None:
            self.rows[row]["bounds"] = provider.bounds
        for what in provider.settings:
            self.runners += runners_of(row, own, choices, **what)
        if provider.name == OURS:
            self.ours.setdefault(dtype, own[0])

    def yardsticks(self) -> dict[str, dict[str, float]]:
        """The yardstick's errors by dtype; it is started where it is not in the race."""
        name, found = self.benchmark.yardstick, {}
        for dtype in self.ours:
            rows = [row for row in self.rows.values() if row["dtype"] == dtype]
            racing = next((row for row in rows if row["provider"] == name), None)
            if racing is None:
                self.say(f"{name}: starting, for its error in {dtype} only")
                options = next(p.options for p in self.benchmark.rows.values() if p.options["dtype"] == dtype)
                plain = self._start(Provider(name, options), self.benchmark.choices[0], self.benchmark.environment)
                racing = self._checked(plain)
                plain.close()
            found[dtype] = racing["error"]
        return found

    def race(self, rounds: int, steps: int) -> dict:
        self.flops = next(iter(self.ours.values())).ask("time", runs=1)["flops"]
        ceilings: dict[str, list[dict]] = {dtype: [] for dtype in self.ours} if self.benchmark.ceilings else {}

        def after(turn: int, load: float | None) -> None:
            for dtype, seen in ceilings.items():
                seen.append(self.ours[dtype].ask("ceiling"))
            self._tell(turn, load, self.runners)

        result = race(self.runners, rounds, steps, after)
        self._put_times(self.runners, self.rows, self.flops)
        peaks = {dtype: max(each.pop("peak_gflops") for each in seen) for dtype, seen in ceilings.items()}
        ceiling = {dtype: max(seen, key=lambda each: each["gflops"]) for dtype, seen in ceilings.items()}
        return {**result, "flops_per_step": self.flops, "ceiling": ceiling, "peak_gflops": peaks}

    def race_beside(self, rounds: int, steps: int) -> dict:
        """The same once more beside a busy core; its rows follow the others."""
        self.say("once more, beside a process of our own that keeps a core busy")
        beside = lambda name: f"{name}, {neighbour.NAME}"  # noqa: E731
        runners = [Runner(beside(r.name), r.worker, r.threads, r.what) for r in self.runners]
        rows = {beside(name): {**row, "busy_neighbour": True} for name, row in self.rows.items()}
        with neighbour.busy_core() as pid:
            result = race(runners, rounds, steps, lambda turn, load: self._tell(turn, load, runners), own=(pid,))
        self._put_times(runners, rows, self.flops)
        self.rows |= rows
        return result

    def _tell(self, turn: int, load: float | None, runners: list[Runner]) -> None:
        times = (f"{name} {milliseconds(runner.seconds[-1])} ms" for name, runner in best_of(runners).items())
        others = f" (others used {load:.0%} of the machine)" if load is not None and load > BUSY else ""
        self.say(f"round {turn}: {', '.join(times)}{others}")

    @staticmethod
    def _put_times(runners: list[Runner], rows: dict[str, dict], flops: int) -> None:
        best = best_of(runners)
        ours = [name for name, row in rows.items() if row["provider"] == OURS]
        fastest = min(best[name].median for name in [n for n in ours if "bounds" not in rows[n]] or ours)  # coarser ones win no race
        for name, row in rows.items():
            own = [r for r in runners if r.name == name]
            row["seconds"], row["all_seconds"], row["threads"] = spread(best[name].seconds), best[name].seconds, best[name].threads
            row["by_threads"] = {
                str(n): spread(min((r for r in own if r.threads == n), key=lambda r: r.median).seconds) for n in {r.threads for r in own}
            }
            if best[name].what:
                row["setting"], row["by_setting"] = best[name].what, {r.setting: spread(r.seconds) for r in own}
            row["gflops"] = flops / row["seconds"]["median"] / 1e9
            row["speedup_of_dynadapt"] = row["seconds"]["median"] / fastest


def difference(found: Path, truth: Path, scores: str, relative: bool) -> dict[str, float]:
    """How far two files of tensors are apart: `scores` by root mean square (over their mean, with `relative`), all others, where there
    are any, by 2-norm."""
    from safetensors.torch import load_file

    a, b = load_file(str(found)), load_file(str(truth))
    if set(a) != set(b):
        raise RuntimeError(f"check: tensors differ: {sorted(set(a) ^ set(b))[:3]}")
    exact = b.pop(scores)
    error = (a.pop(scores) - exact).square().mean().sqrt() / (exact.mean() if relative else 1.0)
    if not b:
        return {scores: float(error)}
    wrong = sum((a[name].view_as(t) - t).square().sum() for name, t in b.items())
    return {scores: float(error), "gradient": float((wrong / sum(t.square().sum() for t in b.values())).sqrt())}


def check(rows: dict[str, dict], yardsticks: dict[str, dict[str, float]], floor: dict[str, float], ours: float = 1.0) -> None:
    """RuntimeError naming the row that is too far from float64; yardsticks: errors by dtype; ours: dynadapt's slack."""
    for name, row in rows.items():
        for measure, error in row["error"].items():
            slack = ours if row["provider"] == OURS else 2.0
            bound = row["bounds"][measure] if "bounds" in row else slack * yardsticks[row["dtype"]][measure] + floor[measure]
            if not error <= bound:
                raise RuntimeError(
                    f"provider {name}: {measure} differs from float64 by {error:.3g}, more than {bound:.3g}; nothing was timed"
                )


# ---- the table


def table(title: str, columns: dict[str, Callable[[str, dict], str]], rows: dict[str, dict]):
    """Prints the rows' name, times and peers' ratio, with a benchmark's own `columns` between and no cell cut; returns the console."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "provider": lambda name, row: name,
        "ms": lambda name, row: milliseconds(row["seconds"]["median"]),
        "20..80%": lambda name, row: "..".join(milliseconds(row["seconds"][q]) for q in ("p20", "p80")),
        **columns,
        "dynadapt is": lambda name, row: "" if row["provider"] == OURS else f"{row['speedup_of_dynadapt']:.2f}x",
        "peak MB": lambda name, row: f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        "first s": lambda name, row: f"{row['first_step_seconds']:.1f}",
        "threads: ms": lambda name, row: ", ".join(f"{n}: {milliseconds(s['median'])}" for n, s in sorted(row["by_threads"].items())),
    }
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        shown.add_column(heading, justify="left" if heading == "provider" else "right", no_wrap=True)
    for name, row in rows.items():
        loses = "bold red" if row["speedup_of_dynadapt"] < 1 else None
        shown.add_row(*(cell(name, row) for cell in columns.values()), style=loses)
    console, width = Console(highlight=False), Console(width=1000).measure(shown).maximum
    console = console if console.width >= width else Console(width=width, highlight=False)
    console.print(shown)
    return console


def errors_line(rows: dict[str, dict], what: str) -> str:
    said = (f"{name} " + ", ".join(f"{error:.1e}" for error in row["error"].values()) for name, row in rows.items())
    return f"error against float64, {what}: {'; '.join(said)}"
