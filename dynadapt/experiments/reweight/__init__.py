"""Training on several domains whose weights a mixer moves.

`run` trains, `fit_run` predicts target losses, `draw` makes the picture.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .config import ReweightConfig

if TYPE_CHECKING:
    from .training import ReweightOptions, run

_LATER = {"draw": "plot", "fit_run": "targets", "run": "training", "ReweightOptions": "training"}
__all__ = ["ReweightConfig", "ReweightOptions", "draw", "fit_run", "run"]


def __getattr__(name: str):
    """What needs torch, matplotlib or scipy is imported when asked for: the command line imports this package at every start."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
