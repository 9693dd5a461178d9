"""``dynadapt bench products``: the matrix products of a step, by themselves, against the best of MKL and oneDNN.

The shapes are a model's: forward y = x W^T and input gradient dx = dy W of each group of linears, and the head. Weights are packed before
they are timed where a library packs weights; each number of threads is a row of its own.
"""

from __future__ import annotations

from dynadapt.runs.progress import say

from .by_threads import of_all, on_each_set, print_rows, race_made, started
from .compare import thread_choices
from .side_by_side import OURS

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


def measure(name: str, shape: dict, workers: dict, rounds: int) -> list[dict]:
    """A row for each number of threads: rates, and ours as a share of the best peer's.

    Raises:
        RuntimeError: ours is wrong, or no peer is there.
    """
    made = {provider: worker.ask("make", **shape) for provider, worker in workers.items()}
    found, by_threads = race_made(name, workers, made, thread_choices(), rounds, RUNS)
    rows, flops = [], 2 * shape["rows"] * shape["outputs"] * shape["inputs"]
    for threads, calls in by_threads.items():
        for call in calls.values():
            if "seconds" in call:
                call["gflops"] = 1e-9 * flops / call["seconds"]["median"]
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
        with started("dynadapt.bench.products_worker", (OURS, *PEERS), {"dtype": dtype}, thread_choices()[0], isa) as workers:
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
        **of_all(measured),
        "peak_gflops": peaks,
        "rows": measured,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    print_rows(
        f"products of a step of {result['model']}, GFLOP/s",
        "product",
        (OURS, *PEERS),
        "of the best",
        result,
        lambda call: f"{call['gflops']:.0f}" if "gflops" in call else "-",
        lambda row: (f"{row['share_of_best']:.0%}", row["share_of_best"] < 1),
    )


def bench_products(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    a = arguments
    return on_each_set("products", a, lambda dtypes, isa: run_products(a.model, a.rows, dtypes, a.rounds, isa), print_table)
