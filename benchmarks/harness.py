"""Single ops side by side on a CPU: dynadapt, torch (eager, compiled, its own fused ops) and other packages, against the machine's ceiling.

    python benchmarks/harness.py                                  # every op at SmolLM2-135M's sizes, bf16, 512 rows
    python benchmarks/harness.py --only attention --dtype fp32
    python benchmarks/harness.py --base HEAD~20                   # this tree against another revision of it, taking turns
    python benchmarks/harness.py --json ops.json --csv ops.csv

Each provider is a process of its own. A call is timed only after its result has been held against float64. In every round the calls
of a case take turns, one run each, with a buffer pushed through the caches by the provider's own threads before each run; each runs
with one thread and with all cores and the faster of the two counts. Rounds go on, up to three times --rounds, while a call's times
are far apart. The table shows medians, the 20% and 80% quantiles, and the share
of the floor: the larger of FLOPs at the rate of the best matrix product of this run, and bytes (every input read once, every output
written once) at the rate of a copy. On a GPU, `benchmarks/gpu_campaign.py ops` times the same cases.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # a source tree needs no installation

from benchmarks.native_build import build_commands, link_kernels  # noqa: E402
from dynadapt.bench.side_by_side import OURS, Worker, best_of, median_load, race, remarks, runners_of, spread, write  # noqa: E402
from dynadapt.runs.progress import say  # noqa: E402


def started(name: str, provider: str, options: dict, threads: int, tree: Path = ROOT) -> Worker:
    """A provider's process, with the dynadapt of `tree`."""
    program = Path(__file__).resolve().parent / "opbench" / "worker.py"
    waiting = os.environ.get("OMP_WAIT_POLICY", "passive")
    environment = {"OMP_WAIT_POLICY": waiting, "PYTHONPATH": str(tree)}
    return Worker(name, [sys.executable, str(program)], {**options, "provider": provider}, threads, environment, tree)


@contextmanager
def revision(name: str | None):
    """A built tree of another revision, gone afterwards; None without one. Nothing of this tree is touched."""
    if name is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), name], f"revision {name!r}")
        try:
            say(f"building {name}")
            for what, command in build_commands(tree, Path(folder) / "build").items():
                _run(command, what)
            link_kernels(tree)
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=False, capture_output=True)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{what}: {command[0]} ended with status {done.returncode}:\n"
            + "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        )


def measure_case(providers: dict[str, list[Worker]], index: int, settings, ceiling: dict) -> dict:
    """Checks every provider's calls of one case, then times them, taking turns.

    Compiled code fixes its threads when it is compiled, so torch has a process for each number; ours changes them at any time.
    """
    row, runners = None, []
    for provider, processes in providers.items():
        able: dict[str, list[Worker]] = {}  # the processes that can make a call, by its name
        for process in processes:
            made = process.ask("make", index=index)
            row = row or {key: made[key] for key in ("op", "label", "bytes", "flops", "note")} | {"calls": {}}
            for name, found in made["calls"].items():
                title = provider if name == OURS else name
                if found.get("fatal") and provider == OURS:
                    raise SystemExit(f"{made['op']} {made['label']}: {found['absent']}: nothing is timed")
                if "absent" in found:
                    row["calls"].setdefault(title, {"absent": found["absent"]})
                    continue
                row["calls"][title] = {"error": found["error"]}
                able.setdefault(name, []).append(process)
        for name, those in able.items():
            choices = (those[0].threads,) if provider == "torch" else tuple(sorted({1, settings.threads}))
            runners += runners_of(provider if name == OURS else name, those, choices, call=name)
    for runner in runners:
        runner.time(2)  # warm
        runner.seconds.clear()
    row |= race(runners, settings.rounds)
    for title, best in best_of(runners).items():
        row["calls"][title] |= {"seconds": spread(best.seconds), "threads": best.threads}
    return finish_row(row, ceiling)


def finish_row(row: dict, ceiling: dict) -> dict:
    products, traffic = row["flops"] / (1e9 * ceiling["gflops"]), row["bytes"] / (1e9 * ceiling["gb_per_s"])
    row["floor_seconds"], row["bound"] = max(products, traffic), "FLOPs" if products > traffic else "bytes"
    timed = {name: call["seconds"]["median"] for name, call in row["calls"].items() if "seconds" in call}
    for name, seconds in timed.items():
        row["calls"][name] |= {
            "gflops": 1e-9 * row["flops"] / seconds,
            "gb_per_s": 1e-9 * row["bytes"] / seconds,
            "share_of_floor": row["floor_seconds"] / seconds,
        }
    peers = {name: seconds for name, seconds in timed.items() if not name.startswith(OURS)}
    row["best_peer"] = min(peers, key=peers.get) if peers else None
    row["speedup"] = peers[row["best_peer"]] / timed[OURS] if peers else None
    return row


def config_of(model: str):
    from dynadapt.model.config import tiny_config
    from dynadapt.model.geometries import geometry

    return tiny_config("llama") if model == "tiny" else geometry(model)


def run(settings) -> dict:
    from dynadapt.common.environment import environment

    options = {name: getattr(settings, name) for name in ("model", "rows", "memory", "dtype", "only")}
    sent = {**options, "config": asdict(config_of(settings.model))}
    providers, rows = {}, []
    with revision(settings.base) as tree:
        try:
            providers[OURS] = [started(OURS, OURS, sent, settings.threads)]
            if tree is not None:
                other = f"{OURS}@{settings.base}"
                providers[other] = [started(other, OURS, sent, settings.threads, tree)]
            if not settings.no_peers:
                providers["torch"] = []
                for threads in sorted({1, settings.threads}):
                    providers["torch"].append(started("torch", "torch", sent, threads))
            ours = providers[OURS][0]
            cases = ours.begun["cases"]
            if not cases:
                raise SystemExit(f"--only {settings.only}: no op has this in its name")
            ceiling = ours.ask("ceiling")
            for index in range(len(cases)):
                rows.append(measure_case(providers, index, settings, ceiling))
                say(f"[{index + 1}/{len(cases)}] {line_of(rows[-1])}")
        finally:
            for process in sum(providers.values(), []):
                process.close()
    return {
        "benchmark": "ops",
        "options": options,
        "model": options["model"],
        "dtype": options["dtype"],
        "threads": settings.threads,
        "rounds": settings.rounds,
        "other_load": median_load([row["other_load"] for row in rows]),
        "ceiling": ceiling,
        "rows": rows,
        "environment": environment(),
    }


def line_of(row: dict) -> str:
    timed = ", ".join(f"{name} {1e3 * call['seconds']['median']:.2f} ms" for name, call in row["calls"].items() if "seconds" in call)
    return f"{row['op']} {row['label']}: {timed}"


def print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    c = result["ceiling"]
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{result['model']}, {result['dtype']}, {result['options']['rows']} rows, {result['threads']} threads at most; ceiling {c['gflops']:.0f} GFLOP/s "
        f"({c['provider']}), {c['gb_per_s']:.0f} GB/s",
        title_justify="left",
    )
    for heading in ("op", "provider", "ms", "20..80 %", "of the floor", "threads", "dynadapt is"):
        table.add_column(heading, justify="left" if heading in ("op", "provider") else "right", no_wrap=True)
    absent = {}
    for row in result["rows"]:
        ours = row["calls"][OURS]["seconds"]["median"]
        for i, (name, call) in enumerate(sorted(row["calls"].items(), key=lambda item: item[0] != OURS)):
            title = f"{row['op']} {row['label']}" if i == 0 else ""
            if "absent" in call:
                table.add_row(title, name, "-", style="dim")
                absent[name] = call["absent"]
                continue
            s, times = call["seconds"], call["seconds"]["median"] / ours
            table.add_row(
                title,
                name,
                f"{1e3 * s['median']:.3g}",
                f"{1e3 * s['p20']:.3g}..{1e3 * s['p80']:.3g}",
                f"{call['share_of_floor']:.0%} ({row['bound']})",
                str(call["threads"]),
                "" if name == OURS else f"{times:.2f}x",
                style="bold red" if times < 1 else None,
            )
    console = Console()
    (console if console.width >= 140 else Console(width=140)).print(table)
    for name, why in absent.items():
        print(f"{name}: {why}")
    for remark in remarks(result):
        print(remark)
    for op, note in {row["op"]: row["note"] for row in result["rows"] if row["note"]}.items():
        print(f"{op}: {note}")


def write_csv(result: dict, path: Path) -> None:
    times, rest = ("median", "p20", "p80"), ("threads", "share_of_floor", "gflops", "gb_per_s", "error", "absent")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["op", "label", "provider", *(f"{name}_ms" for name in times), "runs", *rest])
        for row in result["rows"]:
            for name, call in row["calls"].items():
                s = call.get("seconds", {})
                ms = [1e3 * s[key] if s else "" for key in times]
                writer.writerow([row["op"], row["label"], name, *ms, s.get("runs", ""), *(call.get(key, "") for key in rest)])


def parse(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="smollm2-135m", help="whose sizes: smollm2-135m, llama-3.2-1b, llama-3.1-8b, tiny (default: smollm2-135m)"
    )
    parser.add_argument("--rows", type=int, default=512, help="tokens of one stream (default: 512)")
    parser.add_argument("--memory", type=int, default=512, help="tokens remembered, in the attention cases (default: 512)")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="the most threads that are tried (default: all cores)"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--base", metavar="REV", help="also build and time this git revision")
    parser.add_argument("--no-peers", action="store_true", help="ours (and --base) alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path)
    settings = parser.parse_args(argv)
    for name in ("rows", "memory", "threads", "rounds"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name} {getattr(settings, name)}: give at least 1")
    return settings


def main() -> None:
    settings = parse()
    try:
        result = run(settings)
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    print_table(result)
    if settings.json:
        write(settings.json, result)
    if settings.csv:
        write_csv(result, settings.csv)


if __name__ == "__main__":
    main()
