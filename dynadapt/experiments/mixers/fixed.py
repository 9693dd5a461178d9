"""Fixed: the given weights, all along. What the other static mixes are made of."""

from __future__ import annotations

from .mixer import Mixer


class Fixed(Mixer):
    name, signal, cadence = "fixed", "none", "never"

    def _rule(self, step, losses, tokens):
        return self._weights
