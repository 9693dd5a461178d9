"""What every optimizer has: ``lr``, ``decay`` and ``clip``, and which moments it keeps.

``lr`` is the default of every stream (``Engine.enter`` can give a stream its own); ``decay`` is the share of the way
back to the prior, the weights before adaptation, that each update goes; ``clip`` is the largest 2-norm of a stream's
gradient, 0 for none. An optimizer is one file: its dataclass, and its ``direction`` for the update op (ops/update.py).
"""

from __future__ import annotations

from typing import ClassVar


class Optimizer:
    """Checks of the common fields; subclasses are frozen dataclasses with ``kind`` and ``moments``."""

    kind: ClassVar[str]
    uses_statistics: ClassVar[bool] = False

    def check(self) -> None:
        for name in ("lr", "decay", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number >= 0")
        if self.decay > 1:
            raise ValueError(f"decay={self.decay}: expected at most 1 (1 returns to the prior at every update)")

    @property
    def moments(self) -> tuple[bool, bool]:
        """Whether a first and a second moment are kept."""
        return False, False

    def hyper(self) -> dict[str, float]:
        """beta1, beta2, eps, weight_decay, momentum as the update op takes them."""
        beta1, beta2 = getattr(self, "betas", (0.0, 0.0))
        values = {"beta1": beta1, "beta2": beta2}
        values.update({name: getattr(self, name, 0.0) for name in ("eps", "weight_decay", "momentum")})
        return {name: float(value) for name, value in values.items()}
