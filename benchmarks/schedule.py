"""How one adapt step is shared out among threads that this machine does not have: counted, not timed.

    python benchmarks/schedule.py --out benchmarks/results/cpu/schedule.json
    python benchmarks/schedule.py --sources OTHER/csrc --out before.json         # the kernels of another checkout

Compiles the engine's decoder and the CPU kernels as they are, except that products, loads, stores and exponentials are counted instead
of done (benchmarks/schedule_cpp/counting), and runs a step on a team of simulated threads: each runs until it takes a task or comes to a
barrier, and the one with the least work behind it goes next. Cutting, queues and barriers are the library's own code, so they can't
drift from it. Counts become seconds by the rates below, of one thread of the machine of benchmarks/results/step-bf16.json; what a start
or a barrier costs is an assumption, stated in the file. Not in it: the bandwidth of memory and of shared caches, clock rates, and
threads that the system holds up. So a speed-up is a bound that the schedule sets.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a source tree needs no installation

from benchmarks.script import ended_by_a_line
from dynadapt.bench.side_by_side import check_out
from dynadapt.model.geometries import GEOMETRIES
from dynadapt.runs.rundir import read_json, write_json

NATIVE = ROOT / "benchmarks" / "schedule_cpp"
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-3.2-1b": "Llama-3.2-1B"}
SHAPES = [(1, 128), (1, 512), (4, 512), (64, 512)]  # streams x tokens
THREADS = (1, 2, 4, 8, 16, 32, 64)
RANK = 16
AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
ISAS = {"portable": [], "avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
# Of one thread, a second. flops: half of the best bf16 product of two threads in step-bf16.json. accesses (elements loaded or stored) and
# functions (exponentials): what makes the step's elementwise ops last about as long there as they were measured to.
RATES = {"flops": 446e9, "accesses": 8e9, "functions": 2e9}
# Seconds that a start and its end, or a barrier, cost: and for each thread of the team, whose line of memory another core has written.
COSTS = {"barrier": 1e-6, "member": 1e-7}
CORE = ["core/range", "core/threads", "core/error", "core/check", "cpu/dispatch", "cpu/matrix"]
ENGINE = [f"engine/{name}" for name in ("decoder", "adapter", "window", "config", "config_keys", "json")]
FIELDS = ("regions", "barriers", "tasks", "members", "flops", "accesses", "functions", "busy", "longest", "seconds", "first", "second")


def build(folder: Path, isa: str, sources: Path = ROOT / "csrc", real_threads: bool = False) -> Path:
    """The program, from `sources`, in `folder`; ``real_threads``: on the library's own pool.

    Raises:
        SystemExit: it can't be compiled.
    """
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise SystemExit(f"needs a C++ compiler; {compiler} was not found (set CXX)")
    flags = ["-std=gnu++20", "-O1", "-w", "-fopenmp", "-fno-math-errno", *ISAS[isa], "-DDYN_ISA=portable", "-DDYN_X86=0", "-DDYN_AARCH64=0"]
    flags += [f"-I{path}" for path in (NATIVE, NATIVE / "counting", sources, sources / "include")]
    files = [NATIVE / f"{name}.cpp" for name in ("simulate", "totals", "pool_team" if real_threads else "team")]
    files += [sources / f"{name}.cpp" for name in (*CORE, *ENGINE, *(["core/pool"] if real_threads else []))]
    files += sorted((sources / "cpu" / "kernels").glob("*.cpp"))
    objects = [folder / f"{i}-{file.stem}.o" for i, file in enumerate(files)]

    def run(command):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: run([compiler, *flags, "-c", pair[0], "-o", pair[1]]), zip(files, objects)))
    run([compiler, "-fopenmp", *objects, "-o", folder / "simulate"])
    return folder / "simulate"


def simulate(program: Path, model: str, streams: int, segment: int, threads: int, dtype: str = "bf16", layers: int | None = None) -> dict:
    """{kernel: its counts} of one step."""
    c = GEOMETRIES[model]
    sizes = dict(vocabulary=c.vocab_size, hidden=c.hidden_size, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, ffn=c.ffn_size)
    options = {**sizes, "layers": layers or c.layers, "rank": RANK, "bf16": int(dtype == "bf16"), "streams": streams, "segment": segment}
    words = [f"{name}={value}" for name, value in {**options, "threads": threads, **RATES, **COSTS}.items()]
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if done.returncode == -signal.SIGILL:
        raise SystemExit("--isa: this machine can't run these instructions; give another")
    if done.returncode:
        raise SystemExit(f"the simulation of {model}, {streams} x {segment}, ended with status {done.returncode}: {done.stderr[-1000:]}")
    kernels = {}
    for line in done.stdout.splitlines():
        name, numbers = line.split("\t")
        kernels[name] = dict(zip(FIELDS, map(float, numbers.split())))
    return kernels


def summary(kernels: dict, alone: dict, threads: int) -> dict:
    """The step's row: counts, balance, speed-up over one thread, and which kernels waste most of the threads' time."""
    total = lambda field, of=kernels: sum(k[field] for k in of.values())  # noqa: E731
    seconds = total("seconds")
    wasted = {name: (k["seconds"] * threads - alone[name]["seconds"]) / (seconds * threads) for name, k in kernels.items()}
    most = sorted(wasted, key=lambda name: -wasted[name])[:3]
    return {
        "threads": threads,
        "regions": round(total("regions")),
        "barriers": round(total("barriers")),
        "tasks": round(total("tasks")),
        "tasks_per_region": round(total("tasks") / total("regions"), 1),
        "balance": round(total("busy") / (threads * total("longest")), 4),  # the mean thread's work, of the longest's
        "milliseconds": round(1e3 * seconds, 3),
        "speed_up": round(total("seconds", alone) / seconds, 2),
        "efficiency": round(total("seconds", alone) / seconds / threads, 4),
        "wasted": {name: round(wasted[name], 4) for name in most},
    }


def measure(program: Path, models=MODELS, shapes=SHAPES, threads=THREADS) -> list[dict]:
    rows = []
    for model in models:
        for streams, segment in shapes:
            alone = simulate(program, model, streams, segment, 1)
            steps = [summary(simulate(program, model, streams, segment, count), alone, count) for count in threads]
            rows.append({"model": model, "streams": streams, "segment": segment, "threads": steps})
            print(MODELS[model], f"{streams}x{segment}", *(f"{s['threads']}:{s['speed_up']}" for s in steps), flush=True)
    return rows


def table(results: dict, counts=(2, 8, 16, 64)) -> str:
    """Speed-ups as Markdown; where the file has them, with those of the cutting before."""
    before = {(r["model"], r["streams"], r["segment"]): r for r in results.get("before", [])}
    lines = ["| step | " + " | ".join(f"{n} threads" for n in counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for row in results["steps"]:
        cells = []
        for n in counts:
            of = lambda r: next(s for s in r["threads"] if s["threads"] == n)  # noqa: E731
            old = before.get((row["model"], row["streams"], row["segment"]))
            cells.append((f"{of(old)['speed_up']:.1f} -> " if old else "") + f"{of(row)['speed_up']:.1f} ({of(row)['efficiency']:.0%})")
        lines.append(f"| {MODELS[row['model']]}, {row['streams']} x {row['segment']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def chart(results: dict, width: int = 50) -> str:
    """Efficiency at each number of threads, as text."""
    lines = []
    for row in results["steps"]:
        lines.append(f"{MODELS[row['model']]}, {row['streams']} x {row['segment']}")
        lines += [f"{s['threads']:4d} {'#' * round(width * s['efficiency'])} {s['efficiency']:.0%}" for s in row["threads"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=ROOT / "csrc", help="csrc of the checkout that is looked at (default: this one)")
    parser.add_argument("--isa", choices=ISAS, default="avx512_bf16", help="this machine has to run it (default: %(default)s)")
    parser.add_argument("--before", type=Path, help="a file of this script: its steps stand beside the new ones")
    parser.add_argument("--out", type=Path, required=True, help="results, as JSON")
    options = parser.parse_args()
    if not (options.sources / "cpu" / "kernels").is_dir():
        parser.error(f"--sources {options.sources}: no csrc of a checkout (it has no cpu/kernels)")
    try:
        check_out(options.out)
    except ValueError as error:
        parser.error(str(error))
    with ended_by_a_line():
        before = steps_before(options.before) if options.before else None
        print("compiling the kernels (minutes)", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            steps = measure(build(Path(folder), options.isa, options.sources))
        write_and_print(options, steps, before)


def steps_before(file: Path) -> list[dict]:
    content = read_json(file)
    if not isinstance(content, dict) or content.get("benchmark") != "schedule":
        raise SystemExit(f"--before {file}: no results of this script")
    return content["steps"]


def write_and_print(options, steps: list[dict], before: list[dict] | None) -> None:
    from dynadapt.common.environment import environment

    results = {"benchmark": "schedule", "isa": options.isa, "dtype": "bf16", "rank": RANK, "rates": RATES, "costs": COSTS, "steps": steps}
    if before is not None:
        results["before"] = before
    write_json(options.out, {**results, "environment": environment()})
    print(table(results), chart(results), sep="\n")


if __name__ == "__main__":
    main()
