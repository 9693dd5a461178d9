"""``dynadapt bench products``: the matrix products of a step, by themselves, against the best of MKL and oneDNN.

The shapes are a model's: forward y = x W^T and input gradient dx = dy W of each group of linears, and the head. Weights are packed before
they are timed where a library packs weights; each number of threads is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynadapt.runs.progress import say

from .compare import thread_choices
from .machine import held_to, limits
from .side_by_side import OURS, ModuleWorker, best_of, check_out, median_load, race, remarks, runners_of, spread, write
from .step import dtypes_of, opening_line

PEERS = ("torch.mm", "oneDNN packed", "MKL packed")
RUNS = 5  # of a call in each round


def shapes(model: str, rows: int) -> dict[str, dict]:
    """By name, arguments of a worker's "make"."""
    from dynadapt.engine.weights import group_sizes
    from dynadapt.model.config import tiny_config
    from dynadapt.model.geometries import geometry

    config = tiny_config("llama") if model == "tiny" else geometry(model)
    found = {}
    for (layer, group), (inputs, parts) in group_sizes(config).items():
        if layer == 0:
            for backward in (False, True):
                name = f"{group} {'input gradient' if backward else 'forward'}"
                found[name] = {"rows": rows, "outputs": sum(parts), "inputs": inputs, "backward": backward}
    found["head forward"] = {"rows": rows, "outputs": config.vocab_size, "inputs": config.hidden_size, "backward": False}
    return found


@contextmanager
def started(dtype: str, isa: str | None) -> Iterator[dict[str, ModuleWorker]]:
    workers = {}
    try:
        for name in (OURS, *PEERS):
            options = {"dtype": dtype}
            workers[name] = ModuleWorker(name, "dynadapt.bench.products_worker", options, thread_choices()[0], **limits(isa))
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def measure(name: str, shape: dict, workers: dict, rounds: int) -> list[dict]:
    """A row for each number of threads: rates, and ours as a share of the best peer's.

    Raises:
        RuntimeError: ours is wrong, or no peer is there.
    """
    made = {provider: worker.ask("make", **shape) for provider, worker in workers.items()}
    if "absent" in made[OURS]:
        raise RuntimeError(f"{name}: {made[OURS]['absent']}; nothing was timed")
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
    found, best, rows = race(runners, rounds, RUNS), best_of(runners), []
    flops = 2 * shape["rows"] * shape["outputs"] * shape["inputs"]
    for threads in sorted(thread_choices()):
        calls = {provider: dict(answer) for provider, answer in made.items()}
        for provider in able:
            seconds = spread(best[f"{provider}, {threads}"].seconds)
            calls[provider] |= {"seconds": seconds, "gflops": 1e-9 * flops / seconds["median"]}
        rates = {provider: call["gflops"] for provider, call in calls.items() if provider != OURS and "gflops" in call}
        if not rates:
            raise RuntimeError(f"{name}: no peer can make this product here: {made}")
        peer = max(rates, key=rates.get)
        share = calls[OURS]["gflops"] / rates[peer]
        rows.append({"product": name, **shape, "threads": threads, "calls": calls, "best_peer": peer, "share_of_best": share, **found})
    return rows


def run_products(model: str, rows: int, dtypes: list[str], rounds: int, isa: str | None = None, say=say) -> dict:
    """The whole benchmark on one instruction set; returns what ``--out`` writes."""
    from dynadapt.common.environment import environment

    measured, peaks, todo = [], {}, shapes(model, rows)
    for dtype in dtypes:
        with started(dtype, isa) as workers:
            peaks[dtype] = workers[OURS].ask("ceiling")["peak_gflops"]
            for number, (name, shape) in enumerate(todo.items(), 1):
                measured += [{"dtype": dtype, **row} for row in measure(name, shape, workers, rounds)]
                shares = ", ".join(f"{row['threads']}: {row['share_of_best']:.0%}" for row in measured[-len(thread_choices()) :])
                say(f"[{number}/{len(todo)}] {dtype} {name}, of the best peer by threads: {shares}")
    return {
        "benchmark": "products",
        "model": model,
        "isa": isa,
        "dtype": dtypes,
        "rounds": max(row["rounds"] for row in measured),
        "settled": all(row["settled"] for row in measured),
        "other_load": median_load([row["other_load"] for row in measured]),
        "busy_rounds": max(row["busy_rounds"] for row in measured),
        "peak_gflops": peaks,
        "rows": measured,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"products of a step of {result['model']}, GFLOP/s" + (f", {result['isa']}" if result["isa"] else "")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("product", "dtype", "threads", OURS, *PEERS, "of the best"):
        table.add_column(heading, justify="left" if heading == "product" else "right", no_wrap=True)
    for row in result["rows"]:
        rates = (f"{row['calls'][name]['gflops']:.0f}" if "gflops" in row["calls"][name] else "-" for name in (OURS, *PEERS))
        style = "bold red" if row["share_of_best"] < 1 else None
        table.add_row(row["product"], row["dtype"], str(row["threads"]), *rates, f"{row['share_of_best']:.0%}", style=style)
    console = Console(highlight=False)
    console = console if console.width >= 110 else Console(width=110, highlight=False)
    console.print(table)
    for name, why in {n: c["absent"] for row in result["rows"] for n, c in row["calls"].items() if "absent" in c}.items():
        console.print(f"{name}: {why}")
    for remark in remarks(result):
        console.print(remark)


def bench_products(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    a, results = arguments, []
    if a.dtype != "auto":
        dtypes_of(a.dtype, None)
    check_out(a.out)
    for isa in held_to(a.isa):
        dtypes = dtypes_of(a.dtype, isa)
        say(opening_line(a.dtype, dtypes, isa))
        results.append(run_products(a.model, a.rows, dtypes, a.rounds, isa))
        print_table(results[-1])
    if a.out:
        write(a.out, results[0] if len(results) == 1 else {"benchmark": "products of several", "results": results})
        print(a.out)
    return 0
