"""dynadapt: score a stream of tokens with a language model, learn from each segment right after scoring it."""

from .adapt import RMS, SGD, Adam, AdamW, Full, LoRA, RowSparse
from .engine import Engine
from .experiments.publish import Server, publish
from .memory import Overlap, SegmentMemory
from .model import load
from .session import Session, attach

__version__ = "0.1.0"
__all__ = ["RMS", "SGD", "Adam", "AdamW", "Engine", "Full", "LoRA", "Overlap", "RowSparse", "SegmentMemory", "Server", "Session",
           "attach", "load", "publish"]
