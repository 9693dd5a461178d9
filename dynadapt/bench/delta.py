"""``dynadapt bench delta``: a layer of the gated delta rule between its linears, beside transformers' form in torch, eager and compiled.

Its convolution, gates, delta rule and gated norm, forward alone as scoring runs it, and forward with the gradient of its input as a step
beside adapters does; each number of threads is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynadapt.runs.progress import say

from .compare import thread_choices
from .machine import held_to, limits
from .side_by_side import OURS, ModuleWorker, best_of, check_out, median_load, milliseconds, race, remarks, runners_of, spread, write
from .step import dtypes_of, opening_line

PEERS = ("torch-eager", "torch-compile")
MODES = {"forward": False, "forward and backward": True}


@contextmanager
def started(sizes: dict, dtype: str, isa: str | None) -> Iterator[dict[str, ModuleWorker]]:
    workers = {}
    try:
        for name in (OURS, *PEERS):
            options = {"dtype": dtype, "sizes": sizes, "isa": isa}
            workers[name] = ModuleWorker(name, "dynadapt.bench.delta_worker", options, thread_choices()[0], **limits(isa))
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def measure(mode: str, workers: dict, rounds: int) -> list[dict]:
    """A row for each number of threads: seconds of each provider, and how many times ours the fastest peer takes.

    Raises:
        RuntimeError: ours is wrong, or no peer is there.
    """
    made = {provider: worker.ask("make", backward=MODES[mode]) for provider, worker in workers.items()}
    if "absent" in made[OURS]:
        raise RuntimeError(f"{mode}: {made[OURS]['absent']}; nothing was timed")
    able = {provider: worker for provider, worker in workers.items() if "absent" not in made[provider]}
    runners = [
        runner
        for provider, worker in able.items()
        for threads in thread_choices()
        for runner in runners_of(f"{provider}, {threads}", [worker], (threads,))
    ]
    for runner in runners:
        runner.time(2)  # warm
        runner.seconds.clear()
    found, best, rows = race(runners, rounds), best_of(runners), []
    for threads in sorted(thread_choices()):
        calls = {provider: dict(answer) for provider, answer in made.items()}
        for provider in able:
            calls[provider]["seconds"] = spread(best[f"{provider}, {threads}"].seconds)
        seconds = {provider: call["seconds"]["median"] for provider, call in calls.items() if "seconds" in call}
        peers = {provider: median for provider, median in seconds.items() if provider != OURS}
        if not peers:
            raise RuntimeError(f"{mode}: no peer can make this layer here: {made}")
        peer = min(peers, key=peers.get)
        rows.append({"mode": mode, "threads": threads, "calls": calls, "best_peer": peer, "speedup": peers[peer] / seconds[OURS], **found})
    return rows


def run_delta(sizes: dict, dtypes: list[str], rounds: int, isa: str | None = None, say=say) -> dict:
    """The whole benchmark on one instruction set; returns what ``--out`` writes."""
    from dynadapt.common.environment import environment

    measured = []
    for dtype in dtypes:
        with started(sizes, dtype, isa) as workers:
            for mode in MODES:
                measured += [{"dtype": dtype, **row} for row in measure(mode, workers, rounds)]
                times = ", ".join(f"{row['threads']}: {row['speedup']:.2f}x" for row in measured[-len(thread_choices()) :])
                say(f"{dtype} {mode}, of the best peer by threads: {times}")
    return {
        "benchmark": "delta",
        "sizes": sizes,
        "isa": isa,
        "dtype": dtypes,
        "rounds": max(row["rounds"] for row in measured),
        "settled": all(row["settled"] for row in measured),
        "other_load": median_load([row["other_load"] for row in measured]),
        "busy_rounds": max(row["busy_rounds"] for row in measured),
        "rows": measured,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["sizes"].items())
    title = f"a layer of the gated delta rule, ms: {sizes}" + (f", {result['isa']}" if result["isa"] else "")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("mode", "dtype", "threads", OURS, *PEERS, "best peer / ours"):
        table.add_column(heading, justify="left" if heading == "mode" else "right", no_wrap=True)
    for row in result["rows"]:
        seconds = {name: call["seconds"]["median"] for name, call in row["calls"].items() if "seconds" in call}
        times = (milliseconds(seconds[name]) if name in seconds else "-" for name in (OURS, *PEERS))
        style = "bold red" if row["speedup"] < 1 else None
        table.add_row(row["mode"], row["dtype"], str(row["threads"]), *times, f"{row['speedup']:.2f}x", style=style)
    console = Console(highlight=False)
    console = console if console.width >= 110 else Console(width=110, highlight=False)
    console.print(table)
    for name, why in {n: c["absent"] for row in result["rows"] for n, c in row["calls"].items() if "absent" in c}.items():
        console.print(f"{name}: {why}")
    for remark in remarks(result):
        console.print(remark)


def bench_delta(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    a, results = arguments, []
    sizes = dict(streams=a.streams, tokens=a.tokens, key_heads=a.key_heads, value_heads=a.value_heads)
    sizes |= dict(key_dim=a.key_dim, value_dim=a.value_dim, taps=a.taps)
    if a.value_heads % a.key_heads:
        raise ValueError(f"--value-heads {a.value_heads}: expected a multiple of --key-heads {a.key_heads}")
    if a.dtype != "auto":
        dtypes_of(a.dtype, None)
    check_out(a.out)
    for isa in held_to(a.isa):
        dtypes = dtypes_of(a.dtype, isa)
        say(opening_line(a.dtype, dtypes, isa))
        results.append(run_delta(sizes, dtypes, a.rounds, isa))
        print_table(results[-1])
    if a.out:
        write(a.out, results[0] if len(results) == 1 else {"benchmark": "delta of several", "results": results})
        print(a.out)
    return 0
