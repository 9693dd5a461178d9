"""How it learns: SGD, Adam, AdamW and Krause's RMS, each with decay to the prior and per-stream clipping.

Common fields: ``lr`` (default of every stream; ``Engine.enter`` can give a stream its own), ``decay`` (share of the
way back to the prior, the weights before adaptation, that each update goes), ``clip`` (largest 2-norm of a stream's
gradient, 0 for none). The arithmetic is in ``ops/update.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


def _check(o) -> None:
    for name in ("lr", "decay", "clip"):
        if not getattr(o, name) >= 0:
            raise ValueError(f"{name}={getattr(o, name)}: expected a number >= 0")
    if o.decay > 1:
        raise ValueError(f"decay={o.decay}: expected at most 1 (1 returns to the prior at every update)")


@dataclass(frozen=True)
class SGD:
    """Gradient descent; ``momentum`` m keeps first = m first + g."""

    lr: float = 1e-2
    momentum: float = 0.0
    decay: float = 0.0
    clip: float = 1.0
    kind = "sgd"

    def __post_init__(self):
        _check(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: expected 0 <= momentum < 1")

    @property
    def moments(self) -> tuple[bool, bool]:
        return self.momentum > 0, False


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015); betas[0] = 0 keeps no first moment."""

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0
    clip: float = 1.0
    kind = "adam"

    def __post_init__(self):
        _check(self)
        if not (0 <= self.betas[0] < 1 and 0 < self.betas[1] < 1):
            raise ValueError(f"betas={self.betas}: expected 0 <= beta1 < 1 and 0 < beta2 < 1")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: expected a positive number")

    @property
    def moments(self) -> tuple[bool, bool]:
        return self.betas[0] > 0, True


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay towards zero (Loshchilov and Hutter 2019); ``decay`` to the prior is separate."""

    weight_decay: float = 0.01
    kind = "adamw"


@dataclass(frozen=True)
class RMS:
    """Krause et al. 2018: steps divided by frozen gradient statistics, decay scaled by them.

    Unit convention of the authors' LSTM code (arXiv 1709.07432): MS = sqrt(mean of squared gradients over the
    statistics text), step = lr g / (MS + eps), decay rate per element = decay MS / mean(MS), at most 1.
    Needs ``Engine.gather_statistics(text)`` before the first step.
    """

    lr: float = 5e-5
    eps: float = 2e-5
    decay: float = 2e-3
    clip: float = 0.0
    kind = "rms"

    def __post_init__(self):
        _check(self)
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: expected a positive number")

    @property
    def moments(self) -> tuple[bool, bool]:
        return False, False
