"""Adapter gradients of two linears of a layer, asked for one after the other, as one call: on a GPU small ones share a launch."""

from __future__ import annotations


class GradientPairs:
    """Stands in for the ops of a learner's ``gradient``.

    A call made with ``hold`` waits for the next one, and both go out together; what it reads must stay as it is until then. FLOPs are counted
    where a call goes out.
    """

    def __init__(self, ops, ledger):
        self.ops, self.ledger = ops, ledger
        self.hold, self.held, self.flops = False, None, 0

    def lora_gradient(self, *call) -> None:
        """``lora_gradient``'s arguments."""
        if self.hold:
            self.held, self.flops = call, 0
            return
        if self.held is None:
            return self.ops.lora_gradient(*call)
        first, self.held = self.held, None
        *linear, slots, dA, dBt, accumulate = zip(first, call)
        self.ops.lora_gradient(*map(list, linear), slots[0], list(dA), list(dBt), accumulate[0])

    def __getattr__(self, name: str):
        return getattr(self.ops, name)

    def count(self, flops: int) -> None:
        """Of the call just made."""
        self.flops += flops
        if self.held is None:
            self.ledger.add("backward", self.flops)
            self.flops = 0

    def flush(self) -> None:
        """What waits goes out alone: no second call comes."""
        if self.held is not None:
            first, self.held = self.held, None
            self.ops.lora_gradient(*first)
            self.count(0)
