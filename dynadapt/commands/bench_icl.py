"""`dynadapt bench icl`: one training step of a preset beside the same model in Hugging Face's GPT-2."""

from dynadapt.experiments.icl.bench import add_options
from dynadapt.experiments.icl.bench import bench_icl as run

EXAMPLES = None
__all__ = ["EXAMPLES", "add_options", "run"]
