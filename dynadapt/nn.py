"""Modules for torch models: a frozen linear layer with a trainable low-rank adapter, and a loss without the logits."""

from __future__ import annotations

import math

import torch

from . import torch_ops
from .checks import integer, is_integer, number, wrong
from .ops.precision import wide_dtype

REDUCTIONS = ("none", "mean", "sum")


class LinearCrossEntropy(torch.nn.Module):
    """Cross-entropy of the logits ``input weight^T`` without the logits: one pass gives the loss and the input's gradient.

    In place of ``loss(head(input).flatten(0, -2), target.flatten())`` write ``loss(input, head.weight, target)``. The loss is
    float32 (float64 for float64 input), in nats. A head that does not learn costs no more in backward;
    ``torch_ops.freeze(head.weight)`` keeps it packed between calls.

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
        targets, count = torch.ops.dynadapt.scored_targets(target.reshape(-1), weight.shape[0], self.ignore_index)
        nll = torch_ops.cross_entropy(input, weight, targets.view(target.shape))
        if self.reduction == "none":
            return nll
        total = nll.sum()
        # Where no target counts the mean is 0 / 0, as torch's is, and its gradient 0: outside of the division.
        return total if self.reduction == "sum" else torch.where(count == 0, math.nan, total / count.clamp(min=1))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}"


class LoRALinear(torch.nn.Linear):
    """``torch.nn.Linear`` whose weight and bias are frozen, plus a trainable adapter: y = x W^T + b + (alpha / rank) (x A^T) B^T.

    Its state_dict has Linear's ``weight`` and ``bias`` and peft's ``lora_A`` [R, K] and ``lora_B`` [O, R]. B starts at zero, so
    that a new adapter changes nothing. The adapter is kept in float32 where the weight is bfloat16, and rounded for each call. On
    a CPU the packed form of the weight is kept as well (``torch_ops.freeze``): change it by copy_() or load_state_dict(), never
    the elements of ``weight.data``.

    Args:
        in_features, out_features, bias, device, dtype: as for Linear.
        rank: R, 1 or more. alpha: the scale is alpha / rank; None: twice the rank.

    Source: Hu et al. 2021, LoRA (arXiv 2106.09685).
    """

    def __init__(self, in_features: int, out_features: int, rank: int = 16, alpha: float | None = None, bias: bool = True,
                 device=None, dtype=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._adapt(rank, alpha)

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, rank: int = 16, alpha: float | None = None) -> LoRALinear:
        """The adapter around ``linear``'s own parameters, which are frozen and shared, not copied.

        Raises:
            ValueError: for what is not a plain ``torch.nn.Linear``: another class (quantised ones among them), a parametrized
                weight, hooks or a forward of its own, all of which the new module would leave out.
        """
        kind = type(linear)
        if not isinstance(linear, torch.nn.Linear) or kind.forward is not torch.nn.Linear.forward:
            raise ValueError(f"linear is a {kind.__module__}.{kind.__name__}: expected a torch.nn.Linear with a floating-point weight")
        if "forward" in vars(linear) or linear._forward_hooks or linear._forward_pre_hooks or "weight" not in linear._parameters:
            raise ValueError(f"linear {tuple(linear.weight.shape)} has hooks, a parametrized weight or a forward of its own, which "
                             "the adapter would leave out: expected one without")
        self = cls.__new__(cls)
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._adapt(rank, alpha)
        return self

    def _adapt(self, rank, alpha) -> None:
        self.rank = integer("rank", rank, expected="a whole number, 1 or more")
        self.alpha = 2.0 * rank if alpha is None else float(number("alpha", alpha, "a finite number, or None for twice the rank", lambda x: True))
        self.requires_grad_(False)
        like = {"device": self.weight.device, "dtype": wide_dtype(self.weight.dtype)}
        self.lora_A = torch.nn.Parameter(torch.empty(rank, self.in_features, **like))
        self.lora_B = torch.nn.Parameter(torch.zeros(self.out_features, rank, **like))
        torch.nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self._freeze()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A, Bt = self.lora_A.to(x.dtype), self.lora_B.t().to(x.dtype)
        return torch_ops.linear(x, self.weight, self.bias, A, Bt, scale=self.alpha / self.rank)

    @torch.no_grad()
    def merged(self) -> torch.nn.Linear:
        """A Linear of its own with weight W + (alpha / rank) B A, rounded once to the weight's dtype."""
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        linear = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, **like)
        delta = (self.alpha / self.rank) * (self.lora_B @ self.lora_A)
        linear.weight.copy_(self.weight.to(delta.dtype) + delta)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear

    def _freeze(self) -> None:
        weight = self._parameters.get("weight")  # None where a parametrization makes a new one for every call
        if weight is not None and not weight.is_meta and not weight.requires_grad:
            torch_ops.freeze(weight)

    # What gives the module another weight tensor: to() and its like, deepcopy and unpickling, load_state_dict(assign=True).
    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        self._freeze()
        return self

    def __setstate__(self, state):
        super().__setstate__(state)
        self._freeze()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._freeze()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}"
