"""``dynadapt bench icl``: one training step of a preset, side by side with the same model in Hugging Face's GPT-2.

Errors and gradients at the same initial weights are held against Hugging Face's in float64 before anything is timed.
"""

from __future__ import annotations

from dataclasses import replace

from dynadapt.bench.compare import Benchmark, Provider, compare, errors_line, table, thread_choices
from dynadapt.bench.side_by_side import OURS, check_out, remarks, write
from dynadapt.common.environment import need
from dynadapt.runs.progress import say

from .config import TrainConfig
from .function_class import IclError
from .presets import from_preset

PEERS = ("gpt2-eager", "gpt2-compile")
FLOOR = {"errors": 1e-4, "gradient": 1e-4}


def bench_config(preset: str, **changes) -> TrainConfig:
    """The preset at the size that its curriculum ends with."""
    return from_preset(preset, **changes, dims_start=0, points_start=0, log=1000, schedule="constant", warmup=0)


def run_icl(config: TrainConfig, against: list[str], rounds: int, steps: int, say=say) -> dict:
    """The whole benchmark; returns what ``--out`` writes. steps: of each provider in a round."""
    from dynadapt.common.environment import environment

    on_cpu, options = config.device == "cpu", {"config": config.to_dict(), "dtype": config.dtype}
    benchmark = Benchmark(
        "dynadapt.experiments.icl.bench_worker",
        {name: Provider(name, options, name == "gpt2-compile") for name in (OURS, *against)},
        Provider("gpt2-eager", {**options, "dtype": "fp64"}),
        "gpt2-eager",
        FLOOR,
        thread_choices() if on_cpu else thread_choices()[:1],
        relative=True,
        ceilings=on_cpu,
        slack=2.0 if config.dtype == "bf16" else 1.0,  # peers are under autocast
    )
    found = compare(benchmark, rounds, steps, say)
    for row in found["providers"].values():
        row["steps_per_second"] = 1 / row["seconds"]["median"]
    return {
        "benchmark": "icl",
        "preset": config.preset,
        "config": config.to_dict(),
        **found,
        "steps_per_round": steps,
        "ceiling": found["ceiling"].get(config.dtype),
        "peak_gflops": found["peak_gflops"].get(config.dtype),
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    c = result["config"]
    title = (
        f"one training step of {result['preset']}: {c['batch']} prompts of {c['points']} points in {c['dims']} dimensions, "
        f"{c['layers']} layers of {c['hidden']}, {c['dtype']}, {c['device']}"
    )
    columns = {"steps/s": lambda name, row: f"{row['steps_per_second']:,.1f}", "GFLOP/s": lambda name, row: f"{row['gflops']:,.0f}"}
    console = table(title, columns, result["providers"])
    if result["ceiling"]:
        console.print(f"ceiling: {result['ceiling']['gflops']:.0f} GFLOP/s, the best matrix product of this run")
    for line in (errors_line(result["providers"], "errors and gradient"), *remarks(result)):
        console.print(line)


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
    check_out(arguments.out)
    need("dynadapt bench icl, which checks against float64 in transformers,", ("transformers",), "bench")
    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            raise IclError(f"--{name} {getattr(arguments, name)}: give at least 1")
    config = bench_config(arguments.preset, device=arguments.device, dtype=arguments.dtype, batch=arguments.batch)
    if arguments.device != "cpu":  # torch, which says whether it is there, takes seconds
        import torch

        from dynadapt.ops import choose_device

        config = replace(config, device=str(choose_device(arguments.device, "auto", torch.float32)))
    result = run_icl(config, against, arguments.rounds, arguments.steps)
    print_table(result)
    if arguments.out:
        write(arguments.out, result)
        print(arguments.out)
    return 0
