"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): steps of one size, in the direction of the sign of a moment.

c = beta1 first + (1 - beta1) g;  first = beta2 first + (1 - beta2) g        beta1 = 0: no first moment, c = g
d = lr (sign(c) + weight_decay master)                                       sign(0) = 0
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from dynadapt.common.checks import keep, number
from dynadapt.common.update_rule import direction

from .base import Optimizer, check_betas


@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion; every element moves by lr, so that lr is smaller than Adam's: the authors say 3 to 10 times."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.99)
    _: KW_ONLY
    weight_decay: float = 0.0
    decay: float = 0.0
    clip: float = 1.0
    kind = "lion"
    rates = {"lora": 2e-4, "rows": 3e-5, "full": 1e-5}

    def __post_init__(self):
        self.check()
        keep(self, betas=check_betas(self.betas), weight_decay=number("weight_decay", self.weight_decay, "a finite number >= 0"))


@direction("lion", uses=lambda rule: ("first",) if rule.beta1 else (), flops=lambda rule: 4 + (6 if rule.beta1 else 0))
def lion(g, state, rule, lr, step):
    c = g
    if rule.beta1:
        c = rule.beta1 * state.first + (1 - rule.beta1) * g
        state.first.mul_(rule.beta2).add_((1 - rule.beta2) * g)
    return lr * c.sign() + lr * rule.weight_decay * state.master
