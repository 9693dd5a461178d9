"""`dynadapt demo`: what learns and what remembers, side by side."""

from __future__ import annotations

import argparse

from dynadapt.common.options import settings_of
from dynadapt.experiments.config import EvalConfig

from .parsing import at_least

EXAMPLES = """\
examples:
  dynadapt demo
      time a segment here, and compare as many ways of reading a text, on as much of it, as fit into three minutes
  dynadapt demo --minutes 10 --out runs/demo-10
      more of both
  dynadapt demo --model gemma3-270m --out runs/demo-gemma
      the same ways with another model (dynadapt fetch gemma3-270m, or a directory); texts and tables are as before
  dynadapt demo --minutes 0 --dtype bf16
      all ten ways on all 12,289 tokens, however long that takes: benchmarks/results/demo.json and docs/demo.png

--out gets the runs, results.json, loss_against_flops.png and compare.html, a page that shows where in the text learning gained.
Stopped, the same command goes on."""


def minutes(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"{value!r}: give minutes of work, or 0 for no clock")
    return number


def add_options(command) -> None:
    from dynadapt.experiments.demo.variants import SEGMENT, TOKENS

    command.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="where the runs, the table, the picture and the page go (default: runs/demo)"
    )
    command.add_argument(
        "--model",
        default=EvalConfig.model,
        metavar="MODEL",
        help=f"as of dynadapt eval: a known model, a directory or a GGUF file (default: {EvalConfig.model})",
    )
    command.add_argument(
        "--minutes",
        type=minutes,
        default=3.0,
        metavar="M",
        help="work that it is to fit into, on this machine, by fewer tokens and fewer variants; 0: no clock (default: 3)",
    )
    command.add_argument(
        "--tokens", type=at_least(2), metavar="N", help=f"exactly N tokens of text, without a clock (default: at most {TOKENS})"
    )
    command.add_argument("--segment", type=at_least(1), default=SEGMENT, metavar="N", help=f"tokens in a segment (default: {SEGMENT})")
    command.add_argument(
        "--dtype",
        default=EvalConfig.dtype,
        choices=[dtype for dtype in settings_of(EvalConfig)["dtype"].choices if dtype != "fp64"],
        help=f"arithmetic, as of dynadapt eval (default: {EvalConfig.dtype})",
    )


def run(arguments) -> int:
    from dynadapt.experiments.demo import run_demo

    other = {} if arguments.model == EvalConfig.model else {"model": arguments.model}  # plans of before have no model
    return run_demo(arguments.out, arguments.tokens, arguments.segment, arguments.minutes, dtype=arguments.dtype, **other)
