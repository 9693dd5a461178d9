"""`dynadapt icl figures`: what `dynadapt icl eval` found, drawn from its files alone."""

from dynadapt.experiments.icl.eval_command import add_figures_options as add_options
from dynadapt.experiments.icl.eval_command import run_figures as run

EXAMPLES = None
__all__ = ["EXAMPLES", "add_options", "run"]
