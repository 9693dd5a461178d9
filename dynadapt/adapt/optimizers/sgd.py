"""Stochastic gradient descent, with momentum.

first = momentum first + g;  d = lr first            (momentum 0: d = lr g)
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from dynadapt.common.checks import keep, number
from dynadapt.common.outdated import positional_before
from dynadapt.common.update_rule import direction

from .base import Optimizer


@positional_before
@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent; ``momentum`` m keeps first = m first + g."""

    lr: float = 1e-2
    momentum: float = 0.0
    _: KW_ONLY
    decay: float = 0.0
    clip: float = 1.0
    kind = "sgd"
    rates = {"lora": 1.0, "rows": 1e-1, "full": 1e-1}

    def __post_init__(self):
        self.check()
        keep(self, momentum=number("momentum", self.momentum, "a number, 0 <= momentum < 1", lambda x: 0 <= x < 1))


@direction("sgd", uses=lambda rule: ("first",) if rule.momentum else (), flops=lambda rule: 3 if rule.momentum else 1, fused=True)
def sgd(g, state, rule, lr, step):
    if not rule.momentum:
        return lr * g
    state.first.mul_(rule.momentum).add_(g)
    return lr * state.first
