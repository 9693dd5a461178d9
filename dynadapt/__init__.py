"""dynadapt: score a stream of tokens with a language model, learn from each segment right after scoring it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapt import RMS, SGD, Adam, AdamW, Full, LoRA, RowSparse
    from .engine import Engine
    from .experiments.metrics import read_run
    from .experiments.publish import Server, publish
    from .memory import Overlap, SegmentMemory
    from .model.load import load
    from .session import Session, attach

__version__ = "0.1.0"
__all__ = ["RMS", "SGD", "Adam", "AdamW", "Engine", "Full", "LoRA", "Overlap", "RowSparse", "SegmentMemory", "Server", "Session",
           "attach", "load", "publish", "read_run"]

# Public name -> the module that has it. They are imported when they are asked for: torch takes seconds, and `dynadapt --help` needs none.
_HOMES = {**dict.fromkeys(("RMS", "SGD", "Adam", "AdamW", "Full", "LoRA", "RowSparse"), "adapt"), "Engine": "engine",
          "Server": "experiments.publish", "publish": "experiments.publish",
          "read_run": "experiments.metrics", "Overlap": "memory", "SegmentMemory": "memory",
          "load": "model", "Session": "session", "attach": "session"}
_MODULES = ("adapt", "engine", "experiments", "memory", "model", "ops", "session")  # dynadapt.model.load and so on, without an import of its own


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
