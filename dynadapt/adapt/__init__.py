"""What learns and how: LoRA, RowSparse, Full; SGD, Adam, AdamW, Lion, RMS; resets."""

from .methods import Full, LoRA, RowSparse
from .optimizers import RMS, SGD, Adam, AdamW, Lion

__all__ = ["RMS", "SGD", "Adam", "AdamW", "Full", "Lion", "LoRA", "RowSparse"]
