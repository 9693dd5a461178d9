"""What benchmarks of one piece of work share: providers make it in processes of their own, and each number of threads is a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dynadapt.runs.progress import say

from .machine import held_to, limits
from .side_by_side import OURS, ModuleWorker, best_of, check_out, median_load, race, remarks, runners_of, spread, write
from .step import dtypes_of, opening_line

LEAST_COLUMNS = 110  # of a terminal, below which a table would be cut


@contextmanager
def started(module: str, providers: Sequence[str], options: dict, threads: int, isa: str | None) -> Iterator[dict[str, ModuleWorker]]:
    """A worker of ``module`` for each provider."""
    workers: dict[str, ModuleWorker] = {}
    try:
        for name in providers:
            workers[name] = ModuleWorker(name, module, options, threads, **limits(isa))
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def race_made(what: str, workers: dict, made: dict[str, dict], choices: Sequence[int], rounds: int, steps: int = 1):
    """Times what the workers have ``made``: (what ``race`` found, {threads: {provider: its answer, with "seconds" where it could}}).

    Raises:
        RuntimeError: ours is wrong; nothing was timed.
    """
    if "absent" in made[OURS]:
        raise RuntimeError(f"{what}: {made[OURS]['absent']}; nothing was timed")
    able = {provider: worker for provider, worker in workers.items() if "absent" not in made[provider]}
    runners = [
        runner
        for provider, worker in able.items()
        for threads in choices
        for runner in runners_of(f"{provider}, {threads}", [worker], (threads,))
    ]
    for runner in runners:
        runner.time(2)  # warm
        runner.seconds.clear()
    found, best = race(runners, rounds, steps), best_of(runners)
    timed = lambda provider, threads: {"seconds": spread(best[f"{provider}, {threads}"].seconds)} if provider in able else {}  # noqa: E731
    return found, {
        threads: {provider: {**answer, **timed(provider, threads)} for provider, answer in made.items()} for threads in sorted(choices)
    }


def of_all(rows: list[dict]) -> dict:
    """What is said of a whole run, from its rows."""
    return {
        "rounds": max(row["rounds"] for row in rows),
        "settled": all(row["settled"] for row in rows),
        "other_load": median_load([row["other_load"] for row in rows]),
        "busy_rounds": max(row["busy_rounds"] for row in rows),
    }


def print_rows(
    title: str, named: str, providers: Sequence[str], verdict: str, result: dict, cell: Callable[[dict], str], last: Callable
) -> None:
    """A table of a result's rows. named: the key of what each row is of; verdict: the last column's heading.

    cell(call): what stands for one provider's call; last(row): (the last column, whether ours loses).
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title + (f", {result['isa']}" if result["isa"] else ""), title_justify="left", box=None, pad_edge=False)
    for heading in (named, "dtype", "threads", *providers, verdict):
        table.add_column(heading, justify="left" if heading == named else "right", no_wrap=True)
    for row in result["rows"]:
        said, loses = last(row)
        each = (cell(row["calls"][name]) for name in providers)
        table.add_row(row[named], row["dtype"], str(row["threads"]), *each, said, style="bold red" if loses else None)
    console = Console(highlight=False)
    console = console if console.width >= LEAST_COLUMNS else Console(width=LEAST_COLUMNS, highlight=False)
    console.print(table)
    for name, why in {n: c["absent"] for row in result["rows"] for n, c in row["calls"].items() if "absent" in c}.items():
        console.print(f"{name}: {why}")
    for remark in remarks(result):
        console.print(remark)


def on_each_set(name: str, arguments: Any, run: Callable[[list[str], str | None], dict], show: Callable[[dict], None]) -> int:
    """The command: ``run(dtypes, isa)`` on each instruction set that ``arguments`` name, shown and written."""
    a, results = arguments, []
    if a.dtype != "auto":
        dtypes_of(a.dtype, None)
    check_out(a.out)
    for isa in held_to(a.isa):
        dtypes = dtypes_of(a.dtype, isa)
        say(opening_line(a.dtype, dtypes, isa))
        results.append(run(dtypes, isa))
        show(results[-1])
    if a.out:
        write(a.out, results[0] if len(results) == 1 else {"benchmark": f"{name} of several", "results": results})
        print(a.out)
    return 0
