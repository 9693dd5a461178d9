"""What every optimizer has: ``lr``, ``decay`` and ``clip``, and the rule that the update op follows.

``lr`` is the default of every stream (``Engine.enter`` can give a stream its own); ``decay`` is the share of the way
back to the prior, the weights before adaptation, that each update goes; ``clip`` is the largest 2-norm of a stream's
gradient, 0 for none. An optimizer is one file: its dataclass, and its ``direction`` for the update op (ops/update.py).
"""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

from dynadapt.common.checks import keep, number, sequence, wrong
from dynadapt.common.update_rule import UpdateRule


def check_betas(given) -> tuple[float, float]:
    """A field ``betas``, checked."""
    expected = "two numbers, 0 <= beta1 < 1 and 0 < beta2 < 1"
    values = sequence("betas", given, expected)
    if len(values) != 2:
        raise wrong("betas", given, expected)
    return (
        number("betas[0]", values[0], "a number, 0 <= beta1 < 1", lambda x: 0 <= x < 1),
        number("betas[1]", values[1], "a number, 0 < beta2 < 1", lambda x: 0 < x < 1),
    )


class Optimizer:
    """Checks of the common fields; subclasses are frozen dataclasses with a ``kind``."""

    kind: ClassVar[str]
    lr: float
    decay: float
    clip: float
    rates: ClassVar[dict[str, float]]  # the command line's, where none is given, by what learns

    def check(self) -> None:
        keep(
            self,
            lr=number("lr", self.lr, "a finite number >= 0"),
            decay=number("decay", self.decay, "a number in 0..1 (1 returns to the prior at every update)", lambda x: 0 <= x <= 1),
            clip=number("clip", self.clip, "a finite number >= 0 (0: gradients are not clipped)"),
        )

    def rule(self) -> UpdateRule:
        """The numbers of a step, of the fields of the same names and of ``betas``."""
        own = {f.name: getattr(self, f.name) for f in fields(UpdateRule) if hasattr(self, f.name)}
        if hasattr(self, "betas"):
            own["beta1"], own["beta2"] = self.betas
        return UpdateRule(own.pop("kind"), **{name: float(value) for name, value in own.items()})

    @property
    def uses_statistics(self) -> bool:
        """Whether gradient statistics are to be gathered before the first step."""
        return "stat" in self.rule().uses
