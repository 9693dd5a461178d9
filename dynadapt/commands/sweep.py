"""`dynadapt sweep`: a grid of evaluations."""

from __future__ import annotations

from .parsing import at_least
from .settings import add_log_option

EXAMPLES = """\
a sweep file has the options of `dynadapt eval`, without the dashes:
  out: runs/rates                 # where the cells go (default: runs/FILE)
  scores: true                    # every token's NLL, which dynadapt compare reads (also --scores)
  checkpoint: 16                  # save every 16 segments (also --checkpoint 16)
  base: {model: smollm2-135m, text: builtin:python-reference, tokens: 8192}
  grid: {adapt: [lora], lr: [0.001, 0.002], memory: [0, 512]}       # every combination
  cells: [{adapt: none}, {adapt: none, context: 512}]               # and these, one by one
Finished cells are skipped on a second run, and cells that were stopped, killed or failed go on."""


def add_options(command) -> None:
    command.add_argument("config", metavar="CONFIG.yaml")
    add_log_option(command)
    command.add_argument("--scores", action="store_true", help="write every cell's scores of single tokens, which dynadapt compare reads")
    command.add_argument("--checkpoint", type=at_least(0), metavar="N", help="save every cell every N segments, 0 for never (default: 64)")


def run(arguments) -> int:
    from dynadapt.experiments.sweep import run_sweep

    return run_sweep(arguments.config, arguments.scores, arguments.checkpoint, arguments.logs)
