"""`dynadapt bench delta`: a layer of the gated delta rule beside transformers' form of it."""

from __future__ import annotations

from .bench_step import DTYPES, ISAS
from .parsing import at_least

SIZES = {  # option -> (what it is, its default: that of transformers' configuration)
    "streams": ("independent streams", 1),
    "tokens": ("of each stream", 512),
    "key-heads": ("heads of queries and keys", 16),
    "value-heads": ("heads of values, a multiple of them", 32),
    "key-dim": ("size of a head of queries and keys", 128),
    "value-dim": ("size of a head of values", 128),
    "taps": ("tokens that the convolution sees", 4),
}
EXAMPLES = """examples:
  dynadapt bench delta --dtype all --isa all --out delta.json
  dynadapt bench delta --value-heads 16 --tokens 2048
A layer of the gated delta rule between its linears (convolution, gates, delta rule, gated norm), forward, and forward with the gradient
of its input: milliseconds of dynadapt, and of transformers' form in torch, eager and compiled, with one thread and with all. Results are
checked against the float64 recurrence before anything is timed."""


def add_options(command) -> None:
    for name, (what, default) in SIZES.items():
        command.add_argument(f"--{name}", type=at_least(1), default=default, metavar="N", help=f"{what} (default: {default})")
    command.add_argument(
        "--dtype", default="auto", metavar="A,B", help=f"of {', '.join(DTYPES)}; all; auto: what is fastest (default: auto)"
    )
    command.add_argument(
        "--isa", default="", metavar="A,B", help=f"instruction sets in turn, of {', '.join(ISAS)}; all (default: the processor's best)"
    )
    command.add_argument("--rounds", type=at_least(1), default=10, metavar="N", help="timed rounds at least (default: 10)")
    command.add_argument("--out", metavar="FILE", help="write the results as JSON")


def run(arguments) -> int:
    from dynadapt.bench.delta import bench_delta

    return bench_delta(arguments)
