"""Adapter gradients of one layer, kept until its backward has made all that they read, so that a backend may launch them together."""

from __future__ import annotations

from .ledger import Ledger


class GatheredGradients:
    """Stands in for the decoder's ops where a learner takes the gradient of one linear group: calls of ``lora_gradient`` wait for
    ``launch``, every other op is called at once."""

    def __init__(self, ops, ledger: Ledger):
        self.ops, self.ledger = ops, ledger
        self.calls: list[tuple] = []
        self.flops = 0

    def __getattr__(self, name: str):
        if name == "ops":  # of a copy, which has no attributes yet
            raise AttributeError(name)
        return getattr(self.ops, name)

    def lora_gradient(self, *call) -> None:
        self.calls.append(call)

    def launch(self) -> None:
        """What waits is computed, before anything that it reads is written again."""
        if not self.calls:
            return
        self.ops.lora_gradients(self.calls)
        self.ledger.add("backward", self.flops)
        self.calls, self.flops = [], 0
