"""The slow level: one set of weights that learns from all streams once every so many tokens, and that no document resets.

Beside it each stream's own adapter, the fast level, learns after every segment. Two levels at two speeds are what the best entries of the
Parameter Golf contest adapt with (openai/parameter-golf, records/2026-04-27): a LoRA of each document, and plain SGD with momentum on the
weights below it in chunks of 32,768 scored tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynadapt.common.checks import integer, keep, wrong

from .methods import EMBED, HEAD, LINEAR, Full, LoRA
from .optimizers import SGD, Optimizer


@dataclass(frozen=True)
class Slow:
    """What all streams share and learn slowly (engine/slow_level.py says when and from what).

    Args:
        adapt: ``Full`` on linear weights ("all", "attn", "mlp"), or ``LoRA``, whose product is added to the weights that all streams read (the
            rate for SGD on it is another: SGD.rates).
        optimizer: of its updates, each by the gradient of the mean NLL of the tokens since the last.
        every: an update behind the step by which this many tokens, of all streams together, were scored since the last.
        window: the most tokens of one text that are run together for that gradient; they see each other and nothing before.
            None: 1,024, or the model's positions where they are fewer.
    """

    adapt: Any = Full()
    optimizer: Any = SGD(lr=1e-3, momentum=0.9)
    every: int = 32768
    window: int | None = None

    def __post_init__(self):
        keep(self, every=integer("every", self.every), window=None if self.window is None else integer("window", self.window))
        if not isinstance(self.adapt, (LoRA, Full)) or isinstance(self.adapt, Full) and self.adapt.targets not in LINEAR:
            raise wrong("slow.adapt", self.adapt, f"LoRA(...), or Full(targets=...) with {', '.join(LINEAR)}")
        if isinstance(self.adapt, LoRA) and (self.adapt.also or self.adapt.dora):
            raise wrong("slow.adapt", self.adapt, "LoRA without also and dora")
        if isinstance(self.adapt, LoRA) and not isinstance(self.adapt.targets, str) and {HEAD, EMBED} & {*self.adapt.targets}:
            raise wrong("slow.adapt", self.adapt, "targets without head and embed, which stay as they were loaded")
        if not isinstance(self.optimizer, Optimizer) or type(self.optimizer) is Optimizer or self.optimizer.uses_statistics:
            raise wrong("slow.optimizer", self.optimizer, "SGD(...), Adam(...), AdamW(...), Lion(...) or Muon(...)")


def as_slow(slow) -> Slow | None:
    """A ``Slow`` or None, of one, its class, or None."""
    if slow is None or isinstance(slow, Slow):
        return slow
    if slow is Slow:
        return Slow()
    raise wrong("slow", slow, "Slow(adapt, optimizer, every, window), or None for no slow level")
