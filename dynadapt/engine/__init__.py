"""The engine: the step, and what it needs."""

from dynadapt.model import load

from .arguments import DTYPES, OPTIMIZERS
from .engine import Engine, StepReport

__all__ = ["DTYPES", "OPTIMIZERS", "Engine", "StepReport", "load"]
