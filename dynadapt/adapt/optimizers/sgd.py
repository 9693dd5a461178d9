"""Stochastic gradient descent, with momentum.

first = momentum first + g;  d = lr first            (momentum 0: d = lr g)
"""

from __future__ import annotations

from dataclasses import dataclass

from dynadapt.common.checks import keep, number
from dynadapt.ops.update import Moments, direction

from .base import Optimizer


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent; ``momentum`` m keeps first = m first + g."""

    lr: float = 1e-2
    momentum: float = 0.0
    decay: float = 0.0
    clip: float = 1.0
    kind = "sgd"

    def __post_init__(self):
        self.check()
        keep(self, momentum=number("momentum", self.momentum, "a number, 0 <= momentum < 1", lambda x: 0 <= x < 1))

    @property
    def moments(self) -> tuple[bool, bool]:
        return self.momentum > 0, False


def _flops(hyper) -> int:
    return 3 if hyper["momentum"] else 1


@direction("sgd", flops=_flops)
def sgd(g, m: Moments, hyper):
    if not hyper["momentum"]:
        return m.lr * g
    m.first.mul_(hyper["momentum"]).add_(g)
    return m.lr * m.first
