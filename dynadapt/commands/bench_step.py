"""`dynadapt bench step`: one adapt step beside the same step in other libraries."""

from __future__ import annotations

from dynadapt.experiments.config import EvalConfig

from .early import check_model
from .parsing import at_least

# What dynadapt.bench knows, by name: help is printed without importing it.
PEERS, DTYPES, ISAS = ("peft-eager", "peft-compile"), ("bf16", "fp32"), ("avx2", "avx512", "avx512_bf16")

EXAMPLES = """examples:
  dynadapt bench step --against peft-eager,peft-compile --dtype bf16 --out step.json
  dynadapt bench step --against peft-eager,peft-compile --dtype bf16,fp32 --isa avx2,avx512,avx512_bf16 --out step-cpu.json
      every provider in both dtypes, on each instruction set that this processor can be held to
  dynadapt bench icl garg-tiny --out icl-tiny.json
Results are checked against float64 before anything is timed; every provider runs in a process of its own, takes turns with the
others and is timed with one thread and with all. Rounds go on, up to three times --rounds, while a provider's are far apart, and
a warning says what share of the machine something else used. Peers run streams one after the other."""


def add_options(command) -> None:
    command.add_argument("--against", default="", metavar="A,B", help=f"providers to compare with: {', '.join(PEERS)} (default: none)")
    command.add_argument("--model", default=EvalConfig.model, metavar="NAME", help=f"(default: {EvalConfig.model})")
    command.add_argument("--dtype", default="bf16", metavar="A,B", help=f"arithmetic, of {', '.join(DTYPES)} (default: bf16)")
    command.add_argument(
        "--isa",
        default="",
        metavar="A,B",
        help=f"instruction sets to be held to in turn, of {', '.join(ISAS)} (default: what the processor has)",
    )
    command.add_argument("--streams", type=at_least(1), default=1, metavar="S", help="(default: 1)")
    command.add_argument("--segment", type=at_least(1), default=512, metavar="T", help="tokens (default: 512)")
    command.add_argument("--rank", type=at_least(1), default=EvalConfig.rank, metavar="R", help=f"(default: {EvalConfig.rank})")
    command.add_argument(
        "--rounds", type=at_least(1), default=10, metavar="N", help="timed rounds, each of every provider in turn (default: 10)"
    )
    command.add_argument("--out", metavar="FILE", help="write the results as JSON")


def run(arguments) -> int:
    check_model(arguments.model)
    from dynadapt.bench.step import bench_step

    return bench_step(arguments)
