"""What learns and how: LoRA, RowSparse, Full; SGD, Adam, AdamW, RMS; resets."""

from .optimizers import RMS, SGD, Adam, AdamW
from .methods import Full, LoRA, RowSparse

__all__ = ["RMS", "SGD", "Adam", "AdamW", "Full", "LoRA", "RowSparse"]
