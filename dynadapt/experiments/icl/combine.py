"""Classes made of classes: mixtures (a prompt's function comes from one of them) and convex combinations (it is a sum of two)."""

from __future__ import annotations

from collections.abc import Sequence

from .function_class import FunctionClass, Functions, IclError, check_number, check_range, uniform
from .lazy_torch import torch

SUM_TOLERANCE = 1e-6  # of given weights


def _check_same_dims(name: str, classes: Sequence[FunctionClass]) -> int:
    for kind in classes:
        if not isinstance(kind, FunctionClass):
            raise IclError(f"{name}: {kind!r} is not a function class")
        if kind.dims != classes[0].dims:
            raise IclError(f"{name}: {kind.name} has {kind.dims} dimensions and {classes[0].name} {classes[0].dims}; give all the same")
    return classes[0].dims


class Mixture(FunctionClass):
    """Each prompt's function comes from class i with probability weights[i]; per="batch": a whole batch's from one class, as Panwar et al.
    (mdrpanwar/icl-bayesian-prism) do it.

    Every class is drawn and evaluated for every prompt and one is taken: the choice is made on the device, without a word to the host.
    """

    name = "mixture"

    def __init__(self, classes: Sequence[FunctionClass], weights: Sequence[float] | None = None, *, per: str = "prompt"):
        self.classes = tuple(classes)
        if not self.classes:
            raise IclError("mixture: no classes are given")
        super().__init__(_check_same_dims("mixture", self.classes))
        weights = [1 / len(self.classes)] * len(self.classes) if weights is None else list(weights)
        if len(weights) != len(self.classes):
            raise IclError(f"mixture: {len(self.classes)} classes and {len(weights)} weights")
        self.weights = tuple(check_number(f"mixture: weight of {kind.name}", weight, 0.0) for kind, weight in zip(self.classes, weights))
        if abs(sum(self.weights) - 1) > SUM_TOLERANCE:
            raise IclError(f"mixture: the weights {list(self.weights)} sum to {sum(self.weights):g}, not to one")
        if per not in ("prompt", "batch"):
            raise IclError(f"mixture: per {per!r}: give 'prompt' or 'batch'")
        self.per = per

    @property
    def normaliser(self) -> float:
        return sum(weight * kind.normaliser for weight, kind in zip(self.weights, self.classes))

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        key = uniform(generator, prompts if self.per == "prompt" else 1, dtype=torch.float64).expand(prompts)
        chosen, below = torch.zeros(prompts, dtype=torch.long, device=generator.device), 0.0
        last = max(index for index, weight in enumerate(self.weights) if weight > 0)  # rounding of the sum may not choose weight 0
        for weight in self.weights[:last]:
            below += weight
            chosen += key >= below
        parts = [kind.sample(prompts, generator, active=active, dtype=dtype) for kind in self.classes]
        return {"chosen": chosen, "parts": parts}  # chosen [B]: the index of each prompt's class

    def _choose(self, functions: Functions, values: list[torch.Tensor]):
        stacked = torch.stack(values)  # [classes, B, N]
        index = functions["chosen"][None, :, None].expand(1, *stacked.shape[1:])
        return stacked.gather(0, index).squeeze(0)

    def _values(self, functions, x):
        return self._choose(functions, [kind.values(part, x) for kind, part in zip(self.classes, functions["parts"])])

    def observe(self, functions, x, generator):
        return self._choose(functions, [kind.observe(part, x, generator) for kind, part in zip(self.classes, functions["parts"])])

    def describe(self):
        return {"name": self.name, "classes": [kind.describe() for kind in self.classes], "weights": list(self.weights), "per": self.per}


class ConvexCombination(FunctionClass):
    """y = weight f(x) + (1 - weight) g(x), f from `first` and g from `second`, independent. weight: a number, or (low, high) to draw it
    uniformly for each prompt. The out-of-mixture test of Yadlowsky et al. (arXiv 2311.00871); their coefficients are not known to us."""

    name = "convex_combination"

    def __init__(self, first: FunctionClass, second: FunctionClass, weight: float | tuple[float, float] = 0.5):
        super().__init__(_check_same_dims("convex_combination", (first, second)))
        self.first, self.second = first, second
        self.weight = check_range("convex_combination: weight", weight if isinstance(weight, (tuple, list)) else (weight, weight), 0.0)
        if self.weight[1] > 1:
            raise IclError(f"convex_combination: weight {weight!r}: give 0 to 1")

    @property
    def normaliser(self) -> float:
        """Every class has mean zero, so that the cross term is zero."""
        low, high = self.weight
        first = (low * low + low * high + high * high) / 3  # E[weight^2]
        return first * self.first.normaliser + (1 - low - high + first) * self.second.normaliser

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        low, high = self.weight
        return {
            "weight": uniform(generator, prompts, 1, low=low, high=high, dtype=dtype),
            "first": self.first.sample(prompts, generator, active=active, dtype=dtype),
            "second": self.second.sample(prompts, generator, active=active, dtype=dtype),
        }

    def _values(self, functions, x):
        return torch.lerp(self.second.values(functions["second"], x), self.first.values(functions["first"], x), functions["weight"])

    def observe(self, functions, x, generator):
        first = self.first.observe(functions["first"], x, generator)
        return torch.lerp(self.second.observe(functions["second"], x, generator), first, functions["weight"])

    def describe(self):
        return {"name": self.name, "first": self.first.describe(), "second": self.second.describe(), "weight": list(self.weight)}
