"""Training on several domains whose weights a mixer moves.

`run` trains, `fit_run` predicts target losses, `search_mixture` finds weights beforehand, `draw` makes the picture.
"""

from typing import TYPE_CHECKING

from dynadapt.common.lazy import lazily

from .config import ReweightConfig
from .search_config import SearchConfig

if TYPE_CHECKING:
    from .search import search_mixture
    from .training import ReweightOptions, run

__all__ = ["ReweightConfig", "ReweightOptions", "SearchConfig", "draw", "fit_run", "run", "search_mixture"]
# The command line imports this package at every start.
__getattr__ = lazily(
    __name__, {"draw": "plot", "fit_run": "targets", "run": "training", "ReweightOptions": "training", "search_mixture": "search"}
)
