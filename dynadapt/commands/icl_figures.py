"""`dynadapt icl figures`: what `dynadapt icl eval` found, drawn from its files alone."""

from dynadapt.experiments.icl.eval_command import add_figures_options as add_options
from dynadapt.experiments.icl.eval_command import run_figures

from .early import check_run

EXAMPLES = None
__all__ = ["EXAMPLES", "add_options", "run"]


def run(arguments) -> int:
    for path in arguments.results:
        check_run(path, "no such file")
    return run_figures(arguments)
