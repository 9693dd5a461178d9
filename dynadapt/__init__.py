"""dynadapt: score a stream of tokens with a language model, learn from each segment right after scoring it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common.lazy import lazily
from .common.version import VERSION

if TYPE_CHECKING:
    from .adapt import RMS, SGD, Adam, AdamW, Alarm, Full, Guard, Hypergradient, KeepPrior, Lion, LoRA, Muon, RowSparse, Selection, Slow
    from .engine.engine import Engine
    from .engine.memory import Overlap, SegmentMemory
    from .engine.rate_mixture import RateMixture
    from .experiments.evaluation import Evaluation, evaluate
    from .interop.publish import Server, publish
    from .interop.session import Session, attach
    from .model.load import load
    from .runs.metrics import read_run
    from .runs.stopping import StopRun

__version__ = VERSION
__all__ = [
    "RMS",
    "SGD",
    "Adam",
    "AdamW",
    "Alarm",
    "Engine",
    "Evaluation",
    "Full",
    "Guard",
    "Hypergradient",
    "KeepPrior",
    "Lion",
    "LoRA",
    "Muon",
    "Overlap",
    "RateMixture",
    "RowSparse",
    "SegmentMemory",
    "Server",
    "Session",
    "Selection",
    "Slow",
    "StopRun",
    "attach",
    "evaluate",
    "load",
    "publish",
    "read_run",
]

# Public name -> the module that has it. They are imported when they are asked for: torch takes seconds, and `dynadapt --help` needs none.
_HOMES = {
    **dict.fromkeys("RMS SGD Adam AdamW Alarm Full Guard Hypergradient KeepPrior Lion LoRA Muon RowSparse Selection Slow".split(), "adapt"),
    "Engine": "engine",
    "RateMixture": "engine.rate_mixture",
    "Evaluation": "experiments.evaluation",
    "evaluate": "experiments.evaluation",
    "Server": "interop.publish",
    "publish": "interop.publish",
    "Overlap": "engine.memory",
    "SegmentMemory": "engine.memory",
    "read_run": "runs.metrics",
    "StopRun": "runs.stopping",
    "load": "model",
    "Session": "interop.session",
    "attach": "interop.session",
}
_MODULES = (
    "adapt",
    "engine",
    "experiments",
    "memory",
    "model",
    "ops",
    "session",
)  # dynadapt.model.load and so on, without an import of its own


__getattr__ = lazily(__name__, _HOMES, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
