"""A frozen linear layer with a trainable low-rank adapter."""

from __future__ import annotations

import math

import torch

from dynadapt.common.checks import integer, number
from dynadapt.interop import torch_ops
from dynadapt.ops.precision import wide_dtype

from .autocast import in_autocast
from .packed import KeepsPacked


class LoRALinear(KeepsPacked, torch.nn.Linear):
    """``torch.nn.Linear`` whose weight and bias are frozen, plus a trainable adapter: y = x W^T + b + (alpha / rank) (x A^T) B^T.

    Its state_dict has Linear's ``weight`` and ``bias`` and peft's ``lora_A`` [R, K] and ``lora_B`` [O, R]. B starts at zero, so
    that a new adapter changes nothing. The adapter is kept in float32 where the weight is bfloat16, and rounded for each call. On
    a CPU the packed form of the weight is kept as well (``torch_ops.freeze``): change it by copy_() or load_state_dict(), never
    the elements of ``weight.data``. Under ``torch.autocast`` x and the weight are taken in its dtype, the weight cast anew in each
    call: a model in bfloat16 is faster.

    Args:
        in_features, out_features, bias, device, dtype: as for Linear.
        rank: R, 1 or more. alpha: the scale is alpha / rank; None for 2 x rank.

    Source: Hu et al. 2021, LoRA (arXiv 2106.09685).
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int = 16, alpha: float | None = None, bias: bool = True, device=None, dtype=None
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._adapt(rank, alpha)

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, rank: int = 16, alpha: float | None = None) -> LoRALinear:
        """The adapter around ``linear``'s own parameters, which are frozen and shared, not copied.

        Raises:
            ValueError: for what is not a plain ``torch.nn.Linear``: another class (quantised ones among them), a parametrized
                weight, hooks or a forward of its own, all of which the new module would leave out.
        """
        cls.check(linear)
        self = cls.__new__(cls)
        torch.nn.Module.__init__(self)
        self.training = linear.training
        self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.in_features = self._matrix().shape
        self._adapt(rank, alpha)
        return self

    @classmethod
    def check(cls, linear) -> None:
        """Raise ValueError for what ``from_linear`` refuses."""
        check_plain(linear, torch.nn.Linear, "torch.nn.Linear")

    def _adapt(self, rank, alpha) -> None:
        self.rank, self.alpha = check_adapter(rank, alpha)
        self.requires_grad_(False)
        like = {"device": self.weight.device, "dtype": wide_dtype(self.weight.dtype)}
        self.lora_A = torch.nn.Parameter(torch.empty(self.rank, self.in_features, **like))
        self.lora_B = torch.nn.Parameter(torch.zeros(self.out_features, self.rank, **like))
        torch.nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self._freeze()

    def _matrix(self) -> torch.Tensor:
        """The weight as [O, K]."""
        return self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, weight, bias = in_autocast(x, self._matrix(), self.bias)
        A, Bt = self.lora_A.to(x.dtype), self.lora_B.t().to(x.dtype)
        return torch_ops.linear(x, weight, bias, A, Bt, scale=self.alpha / self.rank)

    @torch.no_grad()
    def merged(self) -> torch.nn.Linear:
        """A Linear of its own with weight W + (alpha / rank) B A, rounded once to the weight's dtype."""
        delta = (self.alpha / self.rank) * (self.lora_B @ self.lora_A)
        weight = (self._matrix().to(delta.dtype) + delta).to(self.weight.dtype)
        return self._plain(torch.nn.Parameter(weight, False), None if self.bias is None else torch.nn.Parameter(self.bias.clone(), False))

    def original(self) -> torch.nn.Linear:
        """The layer without its adapter, around the same weight and bias."""
        return self._plain(self.weight, self.bias)

    def _plain(self, weight, bias) -> torch.nn.Linear:
        linear = torch.nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        linear.weight, linear.bias = weight, bias
        return linear.train(self.training)

    def _freeze(self) -> None:
        weight = self._parameters.get("weight")  # None where a parametrization makes a new one for every call
        if weight is not None and not weight.is_meta and not weight.requires_grad:
            torch_ops.freeze(self._matrix())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}"


class LoRAConv1D(LoRALinear):
    """The same around transformers' ``Conv1D``, a linear layer that keeps its weight as [K, O]; its state_dict keeps it so too."""

    @classmethod
    def check(cls, linear) -> None:
        check_plain(linear, conv1d(), "transformers' Conv1D")

    def _matrix(self) -> torch.Tensor:
        return self.weight.t()

    def _plain(self, weight, bias):
        conv = conv1d().__new__(conv1d())
        torch.nn.Module.__init__(conv)
        conv.nf, conv.nx = self.out_features, self.in_features
        conv.weight = weight if weight is self.weight else torch.nn.Parameter(weight.t().contiguous(), False)
        conv.bias = bias
        return conv.train(self.training)


def conv1d() -> type:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def check_adapter(rank, alpha) -> tuple[int, float]:
    rank = integer("rank", rank, expected="a whole number, 1 or more")
    expected = "a finite number, or None for 2 x rank"
    return rank, float(2 * rank if alpha is None else number("alpha", alpha, expected, lambda x: True))


def check_plain(linear, accepted: type, name: str) -> None:
    """Raise ValueError where an adapter around ``linear``'s parameters would leave something of it out."""
    kind = type(linear)
    if not isinstance(linear, accepted) or kind.forward is not accepted.forward or isinstance(linear, LoRALinear):
        raise ValueError(f"linear is a {kind.__module__}.{kind.__name__}: expected a {name} with a floating-point weight")
    hooks = "forward" in vars(linear) or linear._forward_hooks or linear._forward_pre_hooks
    if hooks or "weight" not in linear._parameters:
        raise ValueError(
            f"linear {tuple(linear.weight.shape)} has hooks, a parametrized weight or a forward of its own, which "
            "the adapter would leave out: expected one without"
        )
