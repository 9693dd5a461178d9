"""How it learns: one file an optimizer."""

from .adam import Adam, AdamW
from .base import Optimizer
from .rms import RMS
from .sgd import SGD

__all__ = ["RMS", "SGD", "Adam", "AdamW", "Optimizer"]
