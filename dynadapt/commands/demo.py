"""`dynadapt demo`: what learns and what remembers, side by side."""

from __future__ import annotations

from dynadapt.commands.parsing import at_least

EXAMPLES = None


def add_options(command) -> None:
    from dynadapt.experiments.demo import SEGMENT, TOKENS
    command.add_argument("--out", default="runs/demo", metavar="DIR", help="where the runs, the table and the picture go (default: runs/demo)")
    command.add_argument("--tokens", type=at_least(2), default=TOKENS, metavar="N", help=f"tokens of text (default: {TOKENS})")
    command.add_argument("--segment", type=at_least(1), default=SEGMENT, metavar="N", help=f"tokens in a segment (default: {SEGMENT})")


def run(arguments) -> int:
    from dynadapt.experiments.demo import run_demo
    return run_demo(arguments.out, arguments.tokens, arguments.segment)
