"""Adam (Kingma and Ba 2015, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

first = beta1 first + (1 - beta1) g;  second = beta2 second + (1 - beta2) g^2
d = lr (first / (1 - beta1^t)) / (sqrt(second / (1 - beta2^t)) + eps)        beta1 = 0: no first moment, d uses g
AdamW:  d += lr weight_decay master
"""

from __future__ import annotations

from dataclasses import dataclass

from dynadapt.common.checks import keep, number, sequence, wrong
from dynadapt.ops.update import Moments, direction

from .base import Optimizer


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam; betas[0] = 0 keeps no first moment."""

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0
    clip: float = 1.0
    kind = "adam"

    def __post_init__(self):
        self.check()
        expected = "two numbers, 0 <= beta1 < 1 and 0 < beta2 < 1"
        betas = sequence("betas", self.betas, expected)
        if len(betas) != 2:
            raise wrong("betas", self.betas, expected)
        keep(
            self,
            betas=(
                number("betas[0]", betas[0], "a number, 0 <= beta1 < 1", lambda x: 0 <= x < 1),
                number("betas[1]", betas[1], "a number, 0 < beta2 < 1", lambda x: 0 < x < 1),
            ),
            eps=number("eps", self.eps, "a positive number", lambda x: x > 0),
        )

    @property
    def moments(self) -> tuple[bool, bool]:
        return self.betas[0] > 0, True


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay towards zero; ``decay`` to the prior is separate."""

    weight_decay: float = 0.01
    kind = "adamw"

    def __post_init__(self):
        super().__post_init__()
        keep(self, weight_decay=number("weight_decay", self.weight_decay, "a finite number >= 0"))


def _flops(hyper) -> int:
    """second 4, first 4 unless beta1 is 0, direction 5 (square roots and divisions count one)."""
    return 9 + (4 if hyper["beta1"] else 0)


@direction("adam", flops=_flops)
def adam(g, m: Moments, hyper):
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    m.second.mul_(beta2).add_((1 - beta2) * g * g)
    mean = g
    if beta1:
        m.first.mul_(beta1).add_((1 - beta1) * g)
        mean = m.first / (1 - beta1**m.step)
    return m.lr * mean / ((m.second / (1 - beta2**m.step)).sqrt() + hyper["eps"])


@direction("adamw", flops=lambda hyper: _flops(hyper) + 2)
def adamw(g, m: Moments, hyper):
    return adam(g, m, hyper) + m.lr * hyper["weight_decay"] * m.master
