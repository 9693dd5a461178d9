"""``dynadapt bench delta``: a layer of the gated delta rule between its linears, beside transformers' form in torch, eager and compiled.

Its convolution, gates, delta rule and gated norm, forward alone as scoring runs it, and forward with the gradient of its input as a step
beside adapters does; each number of threads is a row of its own.
"""

from __future__ import annotations

from dynadapt.runs.progress import say

from .by_threads import of_all, on_each_set, print_rows, race_made, started
from .compare import thread_choices
from .side_by_side import OURS, milliseconds

PEERS = ("torch-eager", "torch-compile")
MODES = {"forward": False, "forward and backward": True}


def measure(mode: str, workers: dict, rounds: int) -> list[dict]:
    """A row for each number of threads: seconds of each provider, and how many times ours the fastest peer takes.

    Raises:
        RuntimeError: ours is wrong, or no peer is there.
    """
    made = {provider: worker.ask("make", backward=MODES[mode]) for provider, worker in workers.items()}
    found, by_threads = race_made(mode, workers, made, thread_choices(), rounds)
    rows = []
    for threads, calls in by_threads.items():
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
        options = {"dtype": dtype, "sizes": sizes, "isa": isa}
        with started("dynadapt.bench.delta_worker", (OURS, *PEERS), options, thread_choices()[0], isa) as workers:
            for mode in MODES:
                measured += [{"dtype": dtype, **row} for row in measure(mode, workers, rounds)]
                times = ", ".join(f"{row['threads']}: {row['speedup']:.2f}x" for row in measured[-len(thread_choices()) :])
                say(f"{dtype} {mode}, of the best peer by threads: {times}")
    return {
        "benchmark": "delta",
        "sizes": sizes,
        "isa": isa,
        "dtype": dtypes,
        **of_all(measured),
        "rows": measured,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["sizes"].items())
    print_rows(
        f"a layer of the gated delta rule, ms: {sizes}",
        "mode",
        (OURS, *PEERS),
        "best peer / ours",
        result,
        lambda call: milliseconds(call["seconds"]["median"]) if "seconds" in call else "-",
        lambda row: (f"{row['speedup']:.2f}x", row["speedup"] < 1),
    )


def bench_delta(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    a = arguments
    sizes = dict(streams=a.streams, tokens=a.tokens, key_heads=a.key_heads, value_heads=a.value_heads)
    sizes |= dict(key_dim=a.key_dim, value_dim=a.value_dim, taps=a.taps)
    if a.value_heads % a.key_heads:
        raise ValueError(f"--value-heads {a.value_heads}: expected a multiple of --key-heads {a.key_heads}")
    return on_each_set("delta", a, lambda dtypes, isa: run_delta(sizes, dtypes, a.rounds, isa), print_table)
