"""The ledger: FLOPs by phase, counted where the work is called, by each op's own formula.

Matrix products count as torch's FlopCounterMode counts them (a multiply-add is two), over the whole rectangle of an
attention window. ``forward``, ``backward`` and ``recompute`` together equal FlopCounterMode on the reference path;
``update`` counts the optimizer's element-wise arithmetic (ops/update.py), which that counter leaves out, and Muon's products.

- forward: what scoring needs, memory attention included;
- backward: d-hidden of the head, input gradients, gradients of what learns;
- recompute: work done again: attention probabilities in backward, the head's logits where the head learns, memory projected
  anew, the context of overlapping windows (forward work of tokens that were scored before).
"""

from __future__ import annotations

PHASES = ("forward", "backward", "update", "recompute")


class Ledger:
    """Totals by phase since the engine was made, and of the last step."""

    def __init__(self):
        self.totals = dict.fromkeys(PHASES, 0)
        self.step = dict.fromkeys(PHASES, 0)

    def begin_step(self) -> None:
        self.step = dict.fromkeys(PHASES, 0)

    def add(self, phase: str, flops: int) -> None:
        self.totals[phase] += flops
        self.step[phase] += flops
