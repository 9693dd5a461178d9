"""How it learns: one file an optimizer. ``OPTIMIZERS`` is the list of them, by name, that all others are made from."""

from .adam import Adam, AdamW
from .base import Optimizer
from .lion import Lion
from .rms import RMS
from .sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.kind: kind for kind in (Adam, AdamW, SGD, RMS, Lion)}

__all__ = ["OPTIMIZERS", "RMS", "SGD", "Adam", "AdamW", "Lion", "Optimizer"]
