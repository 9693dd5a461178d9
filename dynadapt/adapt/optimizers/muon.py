"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982): matrices move by orthogonal ones.

ops/matrix_update.py has its equations, and what moves by AdamW beside the matrices.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from dynadapt.common.checks import keep, number
from dynadapt.common.update_rule import direction

from .base import Optimizer, check_betas


@dataclass(frozen=True)
class Muon(Optimizer):
    """Every matrix moves by 0.2 lr sqrt(max(rows, columns)) times the orthogonal factor of its momentum, so that rates are AdamW's.

    A matrix is A or B of one linear's adapter, or one linear's weight (its chosen rows with ``RowSparse``). With
    ``Full(targets="model")`` norms, biases, embedding, learned positions and head move by AdamW with ``betas`` and ``eps``. The scale is
    the one that torch.optim.Muon calls "match_rms_adamw".
    """

    lr: float = 2e-3
    momentum: float = 0.95
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: float = 0.0
    clip: float = 1.0
    kind = "muon"
    rates = {"lora": 2e-3, "rows": 3e-4, "full": 1e-4}

    def __post_init__(self):
        self.check()
        keep(
            self,
            momentum=number("momentum", self.momentum, "a number, 0 <= momentum < 1", lambda x: 0 <= x < 1),
            betas=check_betas(self.betas),
            eps=number("eps", self.eps, "a positive number", lambda x: x > 0),
            weight_decay=number("weight_decay", self.weight_decay, "a finite number >= 0"),
        )


@direction("muon", uses=lambda rule: ("first",), elsewhere=("second",), flops=lambda rule: 13, prepared="sgd")
def muon(g, state, rule, lr, step):
    """13 an element beside the products: moment 3, u 3, norm 2, its division, scale, weight decay 2, rate; AdamW's elements count as many."""
    from dynadapt.ops.matrix_update import turn

    d = g.clone()
    turn(d, state.first, state.second, state.master, state.parts, rule, step)
    return lr * d
