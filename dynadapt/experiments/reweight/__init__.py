"""Training on several domains whose weights a mixer moves.

`run` trains, `fit_run` predicts target losses, `draw` makes the picture.
"""

from .config import ReweightConfig
from .plot import draw
from .run import ReweightOptions, run
from .targets import fit_run

__all__ = ["ReweightConfig", "ReweightOptions", "draw", "fit_run", "run"]
