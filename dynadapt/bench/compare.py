"""A whole benchmark of a step: providers are started, checked against float64, and only then timed side by side.

What is compared is a `Benchmark`; adapt steps (step.py) and training steps in context (experiments/icl/bench.py) are two.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .side_by_side import OURS, ModuleWorker, Runner, Worker, best_of, milliseconds, race, runners_of, spread

WARM = 3  # steps between the first one and the reading of the peak memory


@dataclass(frozen=True)
class Provider:
    """What a process is told. compiled: it fixes its number of threads when it compiles, so it gets a process for each."""

    name: str
    options: dict
    compiled: bool = False


@dataclass(frozen=True)
class Benchmark:
    """What is compared, and how its results are checked.

    module: run as every provider's process; its worker also answers {"do": "check", "out": FILE} with a file of tensors.
    rows: what is timed, by its name in the results; rows of OURS first.
    truth: the provider in float64 that all are held against.
    yardstick: a name; nothing is timed unless dynadapt is no further from the truth than this provider in the same dtype is, and
        the others at most twice as far. floor: how far they may be anyway, by measure: the tensor whose root mean square is
        measured (relative to its mean, with `relative`), and "gradient", the relative 2-norm over all others.
    choices: numbers of threads, the largest first. ceilings: measure them, which is for CPUs.
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


def thread_choices() -> tuple[int, ...]:
    """All cores, and one."""
    return tuple(dict.fromkeys((len(os.sched_getaffinity(0)), 1)))


def compare(benchmark: Benchmark, rounds: int, steps: int, say: Callable[[str], None]) -> dict:
    """Every provider loads and makes its first step; its memory is read after a few more; its results are checked; only then all
    are timed, `steps` at a time.

    Returns {"rounds", "other_load", "dropped", "flops_per_step", "ceiling" and "peak_gflops" by dtype, "providers": rows}.

    Raises:
        RuntimeError: a provider ended, or is too far from float64.
    """
    rows, runners, workers, yardsticks = {}, [], [], {}
    with tempfile.TemporaryDirectory() as name:
        truth, found = (Path(name) / f"{what}.safetensors" for what in ("truth", "found"))

        def start(provider: Provider, threads: int, **environment: str) -> ModuleWorker:
            workers.append(ModuleWorker(provider.name, benchmark.module, provider.options, threads, **environment))
            return workers[-1]

        def error_of(worker: Worker) -> dict[str, float]:
            worker.ask("check", out=str(found))
            return difference(found, truth, next(iter(benchmark.floor)), benchmark.relative)

        try:
            say(f"float64 truth: {benchmark.truth.name}")
            exact = start(benchmark.truth, benchmark.choices[0])
            exact.ask("check", out=str(truth))
            exact.close()
            for row, provider in benchmark.rows.items():
                dtype, several = provider.options["dtype"], provider.compiled and len(benchmark.choices) > 1
                settings = benchmark.choices if several else benchmark.choices[:1]
                say(f"{provider.name}: starting in {dtype}" + f" with {' and '.join(map(str, settings))} threads" * several)
                own = [start(provider, threads, **benchmark.environment) for threads in settings]
                warm = [worker.ask("time", runs=WARM) for worker in own]
                rows[row] = {
                    "provider": provider.name,
                    "dtype": dtype,
                    "first_step_seconds": own[0].first_step_seconds,
                    "peak_memory_bytes": warm[0]["peak_memory_bytes"],
                    "error": error_of(own[0]),
                }
                runners += runners_of(row, own, benchmark.choices)
                if provider.name == benchmark.yardstick:
                    yardsticks[dtype] = rows[row]["error"]
            ours = {r["dtype"]: next(x.worker for x in runners if x.name == row) for row, r in rows.items() if r["provider"] == OURS}
            for dtype in [dtype for dtype in ours if dtype not in yardsticks]:
                say(f"{benchmark.yardstick}: starting, for its error in {dtype} only")
                options = next(p.options for p in benchmark.rows.values() if p.options["dtype"] == dtype)
                plain = start(Provider(benchmark.yardstick, options), benchmark.choices[0], **benchmark.environment)
                yardsticks[dtype] = error_of(plain)
                plain.close()
            check(rows, yardsticks, benchmark.floor)
            flops = next(iter(ours.values())).ask("time", runs=1)["flops"]
            ceilings: dict[str, list[dict]] = {dtype: [] for dtype in ours}

            def after(turn: int) -> None:
                for dtype, worker in ours.items() if benchmark.ceilings else ():
                    ceilings[dtype].append(worker.ask("ceiling"))
                say(f"round {turn}: " + ", ".join(f"{n} {milliseconds(r.seconds[-1])} ms" for n, r in best_of(runners).items()))

            result = race(runners, rounds, steps, after)
        finally:
            for worker in workers:
                worker.close()
    _put_times(rows, runners, flops)
    peaks = {dtype: max(each.pop("peak_gflops") for each in seen) for dtype, seen in ceilings.items() if seen}
    ceiling = {dtype: max(seen, key=lambda each: each["gflops"]) for dtype, seen in ceilings.items() if seen}
    return {**result, "flops_per_step": flops, "ceiling": ceiling, "peak_gflops": peaks, "providers": rows}


def difference(found: Path, truth: Path, scores: str, relative: bool) -> dict[str, float]:
    """How far two files of tensors are apart: `scores` by root mean square (over their mean, with `relative`), all others by 2-norm."""
    from safetensors.torch import load_file

    a, b = load_file(str(found)), load_file(str(truth))
    if set(a) != set(b):
        raise RuntimeError(f"check: tensors differ: {sorted(set(a) ^ set(b))[:3]}")
    exact = b.pop(scores)
    error = (a.pop(scores) - exact).square().mean().sqrt() / (exact.mean() if relative else 1.0)
    wrong = sum((a[name].view_as(t) - t).square().sum() for name, t in b.items())
    return {scores: float(error), "gradient": float((wrong / sum(t.square().sum() for t in b.values())).sqrt())}


def check(rows: dict[str, dict], yardsticks: dict[str, dict[str, float]], floor: dict[str, float]) -> None:
    """RuntimeError naming the row that is too far from float64; yardsticks: errors by dtype."""
    for name, row in rows.items():
        for measure, error in row["error"].items():
            slack = 1.0 if row["provider"] == OURS else 2.0
            bound = slack * yardsticks[row["dtype"]][measure] + floor[measure]
            if not error <= bound:
                raise RuntimeError(
                    f"provider {name}: {measure} differs from float64 by {error:.3g}, more than {bound:.3g}; nothing was timed"
                )


def _put_times(rows: dict[str, dict], runners: list[Runner], flops: int) -> None:
    best = best_of(runners)
    fastest = min(best[name].median for name, row in rows.items() if row["provider"] == OURS)
    for name, row in rows.items():
        row["seconds"], row["all_seconds"], row["threads"] = spread(best[name].seconds), best[name].seconds, best[name].threads
        row["by_threads"] = {str(r.threads): spread(r.seconds) for r in runners if r.name == name}
        row["gflops"] = flops / row["seconds"]["median"] / 1e9
        row["speedup_of_dynadapt"] = row["seconds"]["median"] / fastest


# ---- the table


def table(title: str, columns: dict[str, Callable[[str, dict], str]], rows: dict[str, dict], width: int):
    """Prints the rows' name, times and peers' ratio, with a benchmark's own `columns` between; returns the console."""
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
        shown.add_row(*(cell(name, row) for cell in columns.values()))
    console = Console(highlight=False)
    console = console if console.width >= width else Console(width=width, highlight=False)
    console.print(shown)
    return console


def errors_line(rows: dict[str, dict], what: str) -> str:
    said = (f"{name} " + ", ".join(f"{error:.1e}" for error in row["error"].values()) for name, row in rows.items())
    return f"error against float64, {what}: {'; '.join(said)}"
