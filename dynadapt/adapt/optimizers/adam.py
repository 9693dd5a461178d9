"""Adam (Kingma and Ba 2015, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

first = beta1 first + (1 - beta1) g;  second = beta2 second + (1 - beta2) g^2
d = lr (first / (1 - beta1^t)) / (sqrt(second / (1 - beta2^t)) + eps)        beta1 = 0: no first moment, d uses g
AdamW:  d += lr weight_decay master
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from dynadapt.common.checks import keep, number
from dynadapt.common.outdated import positional_before
from dynadapt.common.update_rule import direction

from .base import Optimizer, check_betas


@positional_before
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam; betas[0] = 0 keeps no first moment."""

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    _: KW_ONLY
    eps: float = 1e-8
    decay: float = 0.0
    clip: float = 1.0
    kind = "adam"
    rates = {"lora": 2e-3, "rows": 3e-4, "full": 1e-4}

    def __post_init__(self):
        self.check()
        keep(self, betas=check_betas(self.betas), eps=number("eps", self.eps, "a positive number", lambda x: x > 0))


@positional_before
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay towards zero; ``decay`` to the prior is separate."""

    _: KW_ONLY
    weight_decay: float = 0.01
    kind = "adamw"

    def __post_init__(self):
        super().__post_init__()
        keep(self, weight_decay=number("weight_decay", self.weight_decay, "a finite number >= 0"))


def _flops(rule) -> int:
    """second 4, first 4 unless beta1 is 0, direction 5."""
    return 9 + (4 if rule.beta1 else 0)


def _uses(rule) -> tuple[str, ...]:
    return ("first", "second") if rule.beta1 else ("second",)


@direction("adam", uses=_uses, flops=_flops)
def adam(g, state, rule, lr, step):
    state.second.mul_(rule.beta2).add_((1 - rule.beta2) * g * g)
    mean = g
    if rule.beta1:
        state.first.mul_(rule.beta1).add_((1 - rule.beta1) * g)
        mean = state.first / (1 - rule.beta1**step)
    return lr * mean / ((state.second / (1 - rule.beta2**step)).sqrt() + rule.eps)


@direction("adamw", uses=_uses, flops=lambda rule: _flops(rule) + 2)
def adamw(g, state, rule, lr, step):
    return adam(g, state, rule, lr, step) + lr * rule.weight_decay * state.master
