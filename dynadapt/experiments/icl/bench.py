"""``dynadapt bench icl``: one training step of a preset, side by side with the same model in Hugging Face's GPT-2.

Every provider loads in a process of its own. Errors and gradients at the same initial weights are held against Hugging Face's in
float64 before anything is timed; then they take turns, each with one thread and with all (bench_race.py).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from dynadapt.bench.side_by_side import BUSY, best_of, quantiles, race, runners_of
from dynadapt.bench.step import Worker
from dynadapt.common.environment import need

from .config import TrainConfig
from .function_class import IclError
from .presets import from_preset

PEERS = ("gpt2-eager", "gpt2-compile")
MODULE = "dynadapt.experiments.icl.bench_worker"
WARM = 3
SLACK = {"dynadapt": 1.0}  # nothing is timed unless errors and gradients are as near to float64 as eager torch's, peers twice
FLOOR = {"errors": 1e-4, "gradient": 1e-4}


def bench_config(preset: str, **changes) -> TrainConfig:
    """The preset at the size that its curriculum ends with."""
    return from_preset(preset, **changes, dims_start=0, points_start=0, log=1000, schedule="constant", warmup=0)


def _difference(found: Path, truth: Path) -> dict[str, float]:
    """errors: root mean square, relative to their mean; gradient: 2-norm over all parameters, relative."""
    from safetensors.torch import load_file

    a, b = load_file(str(found)), load_file(str(truth))
    if set(a) != set(b):
        raise RuntimeError(f"check: tensors differ: {sorted(set(a) ^ set(b))[:3]}")
    errors = (a.pop("errors") - b["errors"]).square().mean().sqrt() / b.pop("errors").mean()
    wrong = sum((a[name].view_as(t) - t).square().sum() for name, t in b.items())
    return {"errors": float(errors), "gradient": float((wrong / sum(t.square().sum() for t in b.values())).sqrt())}


def check(rows: dict[str, dict], yardstick: dict[str, float]) -> None:
    """RuntimeError naming the provider that is too far from float64."""
    for provider, row in rows.items():
        for name, error in row["error"].items():
            bound = SLACK.get(provider, 2.0) * yardstick[name] + FLOOR[name]
            if not error <= bound:
                raise RuntimeError(
                    f"provider {provider}: {name} differ from float64 by {error:.3g}, more than {bound:.3g}; nothing was timed"
                )


def _start(name: str, options: dict, cores: int, say) -> list[Worker]:
    """A compiled provider fixes its threads when it compiles, so on a CPU it gets a process for each setting."""
    on_cpu = options["config"]["device"] == "cpu"
    settings = [cores, 1] if name.endswith("-compile") and cores > 1 and on_cpu else [cores]
    say(f"{name}: starting" + (f" with {' and '.join(map(str, settings))} threads" if len(settings) > 1 else ""))
    return [Worker(name, options, threads, MODULE) for threads in settings]


def run_icl(config: TrainConfig, against: list[str], rounds: int, steps: int, say=print) -> dict:
    """The whole benchmark; returns what ``--out`` writes. steps: of each provider in a round."""
    from dynadapt.common.environment import environment

    cores = len(os.sched_getaffinity(0))
    on_cpu = config.device == "cpu"
    options = {"config": config.to_dict(), "truth": False}
    rows, runners, active = {}, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def difference(worker: Worker) -> dict[str, float]:
            worker.ask(f"check {folder / 'found.safetensors'}")
            return _difference(folder / "found.safetensors", folder / "truth.safetensors")

        say("float64 truth: transformers")
        truth = Worker("gpt2-eager", {**options, "truth": True}, cores, MODULE)
        truth.ask(f"check {folder / 'truth.safetensors'}")
        truth.close()
        try:
            for provider in ("dynadapt", *against):
                workers = _start(provider, options, cores, say)
                active += workers
                warm = workers[0].time(WARM)
                rows[provider] = {
                    "first_step_seconds": workers[0].first_step_seconds,
                    "error": difference(workers[0]),
                    "peak_memory_bytes": warm["peak_memory_bytes"],
                }
                for other in workers[1:]:
                    other.time(WARM)
                runners += runners_of(provider, workers, tuple(dict.fromkeys((cores, 1))) if on_cpu else (cores,))
            yardstick = rows.get("gpt2-eager", {}).get("error")
            if yardstick is None:
                say("gpt2-eager: starting, for its error only")
                plain = Worker("gpt2-eager", options, cores, MODULE)
                yardstick = difference(plain)
                plain.close()
            check(rows, yardstick)
            flops = active[0].time(1)["flops"]
            ceilings = []

            def after(turn: int) -> None:
                if on_cpu:
                    ceilings.append(active[0].ask("ceiling"))
                say(f"round {turn}: " + ", ".join(f"{n} {1e3 * r.seconds[-1]:.2f} ms" for n, r in best_of(runners).items()))

            found = race(runners, rounds, steps, after)
        finally:
            for worker in active:
                worker.close()
    best = best_of(runners)
    for provider, row in rows.items():
        row["seconds"], row["all_seconds"], row["threads"] = (
            quantiles(best[provider].seconds),
            best[provider].seconds,
            best[provider].threads,
        )
        row["by_threads"] = {str(r.threads): quantiles(r.seconds) for r in runners if r.name == provider}
        row["steps_per_second"] = 1 / row["seconds"]["median"]
        row["gflops"] = flops / row["seconds"]["median"] / 1e9
        row["speedup_of_dynadapt"] = row["seconds"]["median"] / rows["dynadapt"]["seconds"]["median"]
    return {
        "benchmark": "icl",
        "preset": config.preset,
        "config": config.to_dict(),
        **found,
        "steps_per_round": steps,
        "flops_per_step": flops,
        "ceiling": max(ceilings, key=lambda c: c["gflops"]) if ceilings else None,
        "providers": rows,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    c = result["config"]
    title = (
        f"one training step of {result['preset']}: {c['batch']} prompts of {c['points']} points in {c['dims']} dimensions, "
        f"{c['layers']} layers of {c['hidden']}, {c['dtype']}, {c['device']}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("provider", "ms", "20..80 %", "steps/s", "GFLOP/s", "dynadapt is", "peak MB", "first s", "threads"):
        table.add_column(heading, justify="left" if heading == "provider" else "right", no_wrap=True)
    for name, row in result["providers"].items():
        s = row["seconds"]
        table.add_row(
            name,
            f"{1e3 * s['median']:.2f}",
            f"{1e3 * s['p20']:.2f}..{1e3 * s['p80']:.2f}",
            f"{row['steps_per_second']:,.1f}",
            f"{row['gflops']:,.0f}",
            "" if name == "dynadapt" else f"{row['speedup_of_dynadapt']:.2f}x",
            f"{row['peak_memory_bytes'] / 1e6:,.0f}",
            f"{row['first_step_seconds']:.1f}",
            str(row["threads"]),
        )
    console = Console()
    console = console if console.width >= 110 else Console(width=110)
    console.print(table)
    if result["ceiling"]:
        console.print(f"ceiling: {result['ceiling']['gflops']:.0f} GFLOP/s, the best matrix product of this run")
    if result["other_load"] is not None and result["other_load"] > BUSY:
        console.print(f"warning: other processes used {result['other_load']:.0%} of this machine while this ran")
    console.print(
        "against float64, errors and gradient: "
        + "; ".join(f"{name} {row['error']['errors']:.1e}, {row['error']['gradient']:.1e}" for name, row in result["providers"].items())
    )


def add_options(parser) -> None:
    from .presets import PRESETS

    parser.add_argument(
        "preset", nargs="?", default="garg-tiny", metavar="PRESET", help=f"one of {', '.join(PRESETS)} (default: garg-tiny)"
    )
    parser.add_argument("--against", default=",".join(PEERS), metavar="A,B", help=f"peers, of {', '.join(PEERS)} (default: both)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--dtype", default="fp32", choices=("fp32", "bf16"), help="bf16: masters in float32; peers under autocast (default: fp32)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="prompts (default: the preset's)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds, each of every provider in turn (default: 10)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of a provider in a round (default: 20)")
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON")


def bench_icl(arguments) -> int:
    """The command: ``arguments`` as `add_options` made them."""
    against = [name for name in arguments.against.split(",") if name]
    for name in against:
        if name not in PEERS:
            raise IclError(f"--against {name}: give some of {', '.join(PEERS)}")
    need("dynadapt bench icl, which checks against float64 in transformers,", ("transformers",), "bench")
    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            raise IclError(f"--{name} {getattr(arguments, name)}: give at least 1")
    config = bench_config(arguments.preset, device=arguments.device, dtype=arguments.dtype, batch=arguments.batch)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    result = run_icl(config, against, arguments.rounds, arguments.steps, say)
    print_table(result)
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        print(arguments.out)
    return 0
