"""Training on several domains whose weights a mixer moves.

`run` trains, `fit_run` predicts target losses, `draw` makes the picture.
"""

from typing import TYPE_CHECKING

from dynadapt.common.lazy import lazily

from .config import ReweightConfig

if TYPE_CHECKING:
    from .training import ReweightOptions, run

__all__ = ["ReweightConfig", "ReweightOptions", "draw", "fit_run", "run"]
# The command line imports this package at every start.
__getattr__ = lazily(__name__, {"draw": "plot", "fit_run": "targets", "run": "training", "ReweightOptions": "training"})
