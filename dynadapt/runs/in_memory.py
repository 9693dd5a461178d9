"""A run that is kept nowhere: what a run directory is asked for, in memory."""

from __future__ import annotations

import numpy as np

from .rundir import SCORE, Follower


class Unwritten(Follower):
    """Nothing goes on from it and nothing is read from it later. `rows`: the scored tokens, where they are asked for."""

    path = inputs = None

    def __init__(self, scores: bool):
        super().__init__(None, None, None, None)
        self.scores, self._rows = scores, []

    def append_scores(self, rows: np.ndarray) -> None:
        self._rows.append(rows)

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self._rows) if self._rows else np.zeros(0, SCORE)
