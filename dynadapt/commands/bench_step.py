"""`dynadapt bench step`: one adapt step beside the same step in other libraries."""

from __future__ import annotations

from dynadapt.experiments.config import EvalConfig

from .early import check_model
from .parsing import at_least

# What dynadapt.bench knows, by name: help is printed without importing it.
PEERS, DTYPES, ISAS = ("peft-eager", "peft-compile"), ("bf16", "fp32"), ("avx2", "avx512", "avx512_bf16")

EXAMPLES = """examples:
  dynadapt bench step --against peft-eager,peft-compile --dtype bf16 --out step.json
  dynadapt bench step --against peft-eager,peft-compile --dtype all --isa all --busy-neighbour --out step-cpu.json
      every provider in both dtypes, on each instruction set that this processor can be held to, alone and beside a busy core
  dynadapt bench score --against llama.cpp,torch --model smollm2.gguf --out score.json
  dynadapt bench icl garg-tiny --out icl-tiny.json
Results are checked against float64 before anything is timed; every provider runs in a process of its own, takes turns with the
others and is timed with one thread and with all in the same rounds, of which the better one counts and both are shown. Rounds go
on until the 95% interval of every provider's median is within 5% either way, or up to three times --rounds, which is then said. A
warning says what share of the machine something else used. Peers run streams one after the other."""


def add_options(command) -> None:
    command.add_argument("--against", default="", metavar="A,B", help=f"providers to compare with: {', '.join(PEERS)} (default: none)")
    command.add_argument("--model", default=EvalConfig.model, metavar="NAME", help=f"(default: {EvalConfig.model})")
    command.add_argument("--streams", type=at_least(1), default=1, metavar="S", help="(default: 1)")
    command.add_argument("--rank", type=at_least(1), default=EvalConfig.rank, metavar="R", help=f"(default: {EvalConfig.rank})")
    add_arithmetic(command)
    add_rounds(command)


def add_arithmetic(command) -> None:
    """What it is timed in: for every benchmark that is held to instruction sets."""
    command.add_argument(
        "--dtype",
        default="auto",
        metavar="A,B",
        help=f"arithmetic, of {', '.join(DTYPES)}; all; auto: what is fastest here (default: auto)",
    )
    command.add_argument(
        "--base", default="same", metavar="A,B", help="how dynadapt keeps frozen weights, as in dynadapt eval --base (default: same)"
    )
    command.add_argument(
        "--isa",
        default="",
        metavar="A,B",
        help=f"instruction sets to be held to in turn, of {', '.join(ISAS)}; all: that the processor has (default: its best, as one run)",
    )
    command.add_argument("--segment", type=at_least(1), default=512, metavar="T", help="tokens (default: 512)")


def add_rounds(command) -> None:
    command.add_argument(
        "--rounds", type=at_least(1), default=10, metavar="N", help="timed rounds at least, each of every provider in turn (default: 10)"
    )
    command.add_argument(
        "--busy-neighbour",
        action="store_true",
        help="time all once more, as rows of their own, beside a process of ours that keeps a core busy",
    )
    command.add_argument("--out", metavar="FILE", help="write the results as JSON")


def run(arguments) -> int:
    check_model(arguments.model)
    from dynadapt.bench.step import bench_step

    return bench_step(arguments)
