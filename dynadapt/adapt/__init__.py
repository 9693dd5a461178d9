"""What learns and how: LoRA, RowSparse, Full; SGD, Adam, AdamW, Lion, Muon, RMS; resets; the guard; the slow level; which tokens are learned from; rates that move."""

from .guard import Guard
from .hypergradient import Hypergradient
from .methods import Full, LoRA, RowSparse
from .optimizers import RMS, SGD, Adam, AdamW, Lion, Muon
from .reset_policy import Alarm
from .selection import Selection
from .slow import Slow

__all__ = [
    "RMS",
    "SGD",
    "Adam",
    "AdamW",
    "Alarm",
    "Full",
    "Guard",
    "Hypergradient",
    "Lion",
    "LoRA",
    "Muon",
    "RowSparse",
    "Selection",
    "Slow",
]
