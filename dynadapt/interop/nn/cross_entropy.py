"""A loss without the logits."""

from __future__ import annotations

import math

import torch

from dynadapt.common.checks import is_integer, wrong
from dynadapt.interop import torch_ops

from .autocast import in_autocast

REDUCTIONS = ("none", "mean", "sum")


class LinearCrossEntropy(torch.nn.Module):
    """Cross-entropy of the logits ``input weight^T`` without the logits: one pass gives the loss and the input's gradient.

    In place of ``loss(head(input).flatten(0, -2), target.flatten())`` write ``loss(input, head.weight, target)``. The loss is
    float32 (float64 for float64 input), in nats. A head that does not learn costs no more in backward;
    ``torch_ops.freeze(head.weight)`` keeps it packed between calls.

    Under ``torch.autocast`` input and weight are taken in its dtype, as by ``torch.nn.Linear``.

    Args:
        reduction: "mean" over the targets that count, "sum", or "none"; gradients are right for each. The mean over none is
            NaN, its gradient 0.
        ignore_index: targets with this value do not count.

    Raises:
        ValueError: for another reduction, where the shapes do not fit, and for a target that is neither a row of weight nor
            ``ignore_index`` (on a GPU a device-side assertion, as in torch).

    Source: ``dynadapt.ops.cross_entropy``.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = -100):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction={reduction!r}: expected one of {', '.join(REDUCTIONS)}")
        if not is_integer(ignore_index):
            raise wrong("ignore_index", ignore_index, "a whole number")
        self.reduction, self.ignore_index = reduction, int(ignore_index)

    def forward(self, input: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """input [..., H], weight [V, H], target int64 [...] -> a scalar, or [...] for reduction="none"."""
        input, weight = in_autocast(input, weight)
        targets, count = torch.ops.dynadapt.scored_targets(target.reshape(-1), weight.shape[0], self.ignore_index)
        nll = torch_ops.cross_entropy(input, weight, targets.view(target.shape))
        if self.reduction == "none":
            return nll
        total = nll.sum()
        # Where no target counts the mean is 0 / 0, as torch's is, and its gradient 0: outside of the division.
        return total if self.reduction == "sum" else torch.where(count == 0, math.nan, total / count.clamp(min=1))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}"
