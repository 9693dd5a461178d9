"""The engine: the step, and what it needs."""

from dynadapt.common.collection import uncollected

with uncollected():
    from dynadapt.model import load

    from .engine import Engine, StepReport
    from .settings import DTYPES, OPTIMIZERS

__all__ = ["DTYPES", "OPTIMIZERS", "Engine", "StepReport", "load"]
