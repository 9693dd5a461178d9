"""How it learns: one file an optimizer. ``OPTIMIZERS`` is the list of them, by name, that all others are made from."""

from .adam import Adam, AdamW
from .base import Optimizer
from .lion import Lion
from .muon import Muon
from .rms import RMS
from .sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.kind: kind for kind in (Adam, AdamW, SGD, RMS, Lion, Muon)}
WITH_STATISTICS = tuple(kind for kind, optimizer in OPTIMIZERS.items() if optimizer().uses_statistics)
WITHOUT_STATISTICS = tuple(kind for kind in OPTIMIZERS if kind not in WITH_STATISTICS)
IN_WORDS = f"{', '.join(WITHOUT_STATISTICS[:-1])} or {WITHOUT_STATISTICS[-1]}"  # what an error offers where there are no statistics

__all__ = ["IN_WORDS", "OPTIMIZERS", "RMS", "SGD", "WITHOUT_STATISTICS", "WITH_STATISTICS", "Adam", "AdamW", "Lion", "Muon", "Optimizer"]
