"""What learns and how: LoRA, RowSparse, Full; SGD, Adam, AdamW, Lion, Muon, RMS; resets; the guard; the slow level; what keeps the prior; which
tokens are learned from; rates that move."""

from .guard import Guard
from .hypergradient import Hypergradient
from .keep_prior import KeepPrior
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
    "KeepPrior",
    "Lion",
    "LoRA",
    "Muon",
    "RowSparse",
    "Selection",
    "Slow",
]
