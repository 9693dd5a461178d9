"""Single ops side by side on a CPU: dynadapt, torch (eager, compiled, its own fused ops) and other packages, against the machine's ceiling.

    python benchmarks/harness.py                                  # every op at SmolLM2-135M's sizes, bf16, 512 rows
    python benchmarks/harness.py --only attention --dtype fp32
    python benchmarks/harness.py --base HEAD~20                   # this tree against another revision of it, taking turns
    python benchmarks/harness.py --json ops.json --csv ops.csv

Each provider is a process of its own. A call is timed only after its result has been held against float64. In every round the calls
of a case take turns, one run each, with a buffer pushed through the caches by the provider's own threads before each run; each runs
with one thread and with all cores and the faster of the two counts. The table shows medians, the 20% and 80% quantiles, and the share
of the floor: the larger of FLOPs at the rate of the best matrix product of this run, and bytes (every input read once, every output
written once) at the rate of a copy. On a GPU, `benchmarks/gpu_campaign.py ops` times the same cases.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # a source tree needs no installation

from dynadapt.bench.step import Child, quantiles  # noqa: E402

OURS = "dynadapt"


class Process(Child):
    """A provider: ``ask`` sends one command and waits for its answer."""

    def __init__(self, name: str, provider: str, options: dict, threads: int, tree: Path = ROOT):
        worker = Path(__file__).resolve().parent / "opbench" / "worker.py"
        waiting = os.environ.get("OMP_WAIT_POLICY", "passive")
        super().__init__(name, threads, [sys.executable, str(worker)], {"OMP_WAIT_POLICY": waiting, "PYTHONPATH": str(tree)}, cwd=tree)
        self.name = name
        self.cases = self.exchange(json.dumps({**options, "provider": provider, "threads": threads}))["cases"]

    def ask(self, do: str, **arguments) -> dict:
        return self.exchange(json.dumps({"do": do, **arguments}))


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
            import pybind11

            build = Path(folder) / "build"
            say(f"building {name}")
            _run(
                [
                    "cmake",
                    "-S",
                    str(tree),
                    "-B",
                    str(build),
                    "-G",
                    "Ninja",
                    f"-DPython_EXECUTABLE={sys.executable}",
                    f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                ],
                "cmake",
            )
            _run(["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)], "build")
            _run(["cmake", "--install", str(build), "--prefix", str(tree / "dynadapt"), "--component", "python"], "install")
            if not (tree / "dynadapt" / "kernels").exists():
                (tree / "dynadapt" / "kernels").symlink_to("../kernels")
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


def measure_case(processes: list[Process], index: int, settings, ceiling: dict) -> dict:
    """Checks every provider's calls of one case, then times them, taking turns."""
    row, entries = None, []
    for process in processes:
        made = process.ask("make", case=index)
        row = row or {key: made[key] for key in ("op", "label", "bytes", "flops", "note")} | {"calls": {}}
        for name, found in made["calls"].items():
            title = name if process.name in (OURS, "torch") or name != OURS else process.name
            if found.get("fatal") and process.name == OURS:
                raise SystemExit(f"{made['op']} {made['label']}: {found['absent']}: nothing is timed")
            if "absent" in found:
                row["calls"].setdefault(title, {"absent": found["absent"]})
                continue
            row["calls"][title] = {"error": found["error"]}
            entries += [(process, name, title, threads, []) for threads in _thread_choices(process, settings.threads)]
    for process, name, _, threads, _ in entries:
        process.ask("time", name=name, threads=threads, runs=2)  # warm
    for _ in range(settings.rounds):
        for process, name, _, threads, seconds in entries:
            seconds += process.ask("time", name=name, threads=threads, runs=1)["seconds"]
    for _, _, title, threads, seconds in entries:
        found = quantiles(seconds)
        best = row["calls"][title].get("seconds")
        if best is None or found["median"] < best["median"]:
            row["calls"][title] |= {"seconds": found, "threads": threads}
    return finish_row(row, ceiling)


def _thread_choices(process: Process, cores: int) -> list[int]:
    """Compiled code fixes its threads when it is compiled, so torch has a process for each setting; ours changes them at any time."""
    return sorted({1, cores}) if process.name != "torch" else [process.threads]


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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def config_of(model: str):
    from dynadapt.model.config import tiny_config
    from dynadapt.model.geometries import geometry

    return tiny_config("llama") if model == "tiny" else geometry(model)


def run(settings) -> dict:
    from dynadapt.common.environment import environment

    options = {name: getattr(settings, name) for name in ("model", "rows", "memory", "dtype", "only")}
    sent = {**options, "config": asdict(config_of(settings.model))}
    processes, rows = [], []
    with revision(settings.base) as tree:
        try:
            processes.append(Process(OURS, OURS, sent, settings.threads))
            if tree is not None:
                processes.append(Process(f"{OURS}@{settings.base}", OURS, sent, settings.threads, tree))
            if not settings.no_peers:
                processes += [Process("torch", "torch", sent, threads) for threads in sorted({1, settings.threads})]
            cases = processes[0].cases
            if not cases:
                raise SystemExit(f"--only {settings.only}: no op has this in its name")
            ceiling = processes[0].ask("ceiling", threads=settings.threads)
            for index, (_op, _which) in enumerate(cases):
                rows.append(measure_case(processes, index, settings, ceiling))
                say(f"[{index + 1}/{len(cases)}] {line_of(rows[-1])}")
        finally:
            for process in processes:
                process.close()
    return {
        "benchmark": "ops",
        "options": options,
        "model": options["model"],
        "dtype": options["dtype"],
        "threads": settings.threads,
        "rounds": settings.rounds,
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
    for op, note in {row["op"]: row["note"] for row in result["rows"] if row["note"]}.items():
        print(f"{op}: {note}")


def write_csv(result: dict, path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "op",
                "label",
                "provider",
                "median_ms",
                "p20_ms",
                "p80_ms",
                "runs",
                "threads",
                "share_of_floor",
                "gflops",
                "gb_per_s",
                "error",
                "absent",
            ]
        )
        for row in result["rows"]:
            for name, call in row["calls"].items():
                s = call.get("seconds", {})
                ms = [1e3 * s[key] if s else "" for key in ("median", "p20", "p80")]
                writer.writerow(
                    [
                        row["op"],
                        row["label"],
                        name,
                        *ms,
                        s.get("runs", ""),
                        *(call.get(key, "") for key in ("threads", "share_of_floor", "gflops", "gb_per_s", "error", "absent")),
                    ]
                )


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
        settings.json.write_text(json.dumps(result, indent=1) + "\n")
    if settings.csv:
        write_csv(result, settings.csv)


if __name__ == "__main__":
    main()
