"""Krause et al. 2018 (arXiv 1709.07432): steps divided by frozen gradient statistics, decay scaled by them.

    MS = sqrt(mean of squared gradients over the statistics text);   d = lr g / (MS + eps)
    decay rate per element = decay MS / mean(MS), at most 1          (mean over tensors of each tensor's mean)

This is the unit convention of the authors' LSTM code.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from dynadapt.common.checks import keep, number
from dynadapt.common.outdated import positional_before
from dynadapt.common.update_rule import direction

from .base import Optimizer


@positional_before
@dataclass(frozen=True)
class RMS(Optimizer):
    """Needs ``Engine.gather_statistics(text)`` before the first step."""

    lr: float = 5e-5
    eps: float = 2e-5
    _: KW_ONLY
    decay: float = 2e-3
    clip: float = 0.0
    kind = "rms"
    rates = {"rows": 1e-4, "full": 2e-5}

    def __post_init__(self):
        self.check()
        keep(self, eps=number("eps", self.eps, "a positive number", lambda x: x > 0))


@direction("rms", uses=lambda rule: ("stat",), flops=lambda rule: 3, fused=True)
def rms(g, state, rule, lr, step):
    return lr * g / (state.stat + rule.eps)
