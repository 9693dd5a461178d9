"""What every optimizer has: ``lr``, ``decay`` and ``clip``, and which moments it keeps.

``lr`` is the default of every stream (``Engine.enter`` can give a stream its own); ``decay`` is the share of the way
back to the prior, the weights before adaptation, that each update goes; ``clip`` is the largest 2-norm of a stream's
gradient, 0 for none. An optimizer is one file: its dataclass, and its ``direction`` for the update op (ops/update.py).
"""

from __future__ import annotations

from typing import ClassVar

from dynadapt.common.checks import keep, number


class Optimizer:
    """Checks of the common fields; subclasses are frozen dataclasses with ``kind`` and ``moments``."""

    lr: float
    decay: float
    clip: float
    kind: ClassVar[str]
    uses_statistics: ClassVar[bool] = False

    def check(self) -> None:
        keep(
            self,
            lr=number("lr", self.lr, "a finite number >= 0"),
            decay=number("decay", self.decay, "a number in 0..1 (1 returns to the prior at every update)", lambda x: 0 <= x <= 1),
            clip=number("clip", self.clip, "a finite number >= 0 (0: gradients are not clipped)"),
        )

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
