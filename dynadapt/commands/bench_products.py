"""`dynadapt bench products`: a step's matrix products beside MKL and oneDNN."""

from __future__ import annotations

from .bench_step import DTYPES, ISAS
from .parsing import at_least

EXAMPLES = """examples:
  dynadapt bench products --dtype all --isa all --out products.json
  dynadapt bench products --model llama-3.2-1b --rows 128
Forward and input gradient of every group of linears, and the head, at a model's sizes, by themselves: GFLOP/s of dynadapt, torch.mm,
and oneDNN and MKL with packed weights, with one thread and with all. Results are checked against float64 before anything is timed."""


def add_options(command) -> None:
    command.add_argument(
        "--model", default="smollm2-135m", metavar="NAME", help="whose sizes: smollm2-135m, llama-3.2-1b, ..., tiny (default: smollm2-135m)"
    )
    command.add_argument("--rows", type=at_least(1), default=512, metavar="T", help="tokens (default: 512)")
    command.add_argument(
        "--dtype", default="auto", metavar="A,B", help=f"of {', '.join(DTYPES)}; all; auto: what is fastest (default: auto)"
    )
    command.add_argument(
        "--isa", default="", metavar="A,B", help=f"instruction sets in turn, of {', '.join(ISAS)}; all (default: the processor's best)"
    )
    command.add_argument("--rounds", type=at_least(1), default=10, metavar="N", help="timed rounds at least, of five calls (default: 10)")
    command.add_argument("--out", metavar="FILE", help="write the results as JSON")


def run(arguments) -> int:
    from dynadapt.bench.products import bench_products

    return bench_products(arguments)
