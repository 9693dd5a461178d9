"""`dynadapt icl eval`: trained models and baselines on the same prompts."""

from dynadapt.experiments.icl.eval_command import EVAL_EXAMPLES as EXAMPLES
from dynadapt.experiments.icl.eval_command import add_eval_options as add_options
from dynadapt.experiments.icl.eval_command import run_eval as run

__all__ = ["EXAMPLES", "add_options", "run"]
