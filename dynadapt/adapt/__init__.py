"""What learns and how: LoRA, RowSparse, Full; SGD, Adam, AdamW, RMS; resets."""

from .methods import Full, LoRA, RowSparse
from .optimizers import RMS, SGD, Adam, AdamW

__all__ = ["RMS", "SGD", "Adam", "AdamW", "Full", "LoRA", "RowSparse"]
