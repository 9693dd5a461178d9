"""Norms and biases that learn: their names, shapes and priors, and views of them in the form in which the decoder reads a model's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dynadapt.adapt.targets import norms_and_biases
from dynadapt.engine.weights import ModelTensors, biased_groups, group_sizes
from dynadapt.model.layout import tensor_shapes

Get = Callable[[str], torch.Tensor]


def bias_name(key: tuple[int, str]) -> str:
    """Of the biases of a group of linears, which are one tensor."""
    return f"{key[0]}.{key[1]}.bias"


class BesideTensors:
    """What ``adapt`` names of norms and biases.

    ``shapes``: by name; names are canonical but for those of ``bias_name``, of the groups in ``biased``: {(layer, group): the parts' canonical
    names}.
    """

    def __init__(self, adapt, config):
        self.config, chosen = config, norms_and_biases(adapt, config)
        self.biased = {key: names for key, names in biased_groups(config).items() if names[0] in chosen}
        of_linears = {name for names in self.biased.values() for name in names}
        shapes, sizes = tensor_shapes(config), group_sizes(config)
        alone = {name: shapes[name] for name in chosen if name not in of_linears}
        self.shapes: dict[str, tuple[int, ...]] = {**alone, **{bias_name(key): (sum(sizes[key][1]),) for key in self.biased}}

    def views(self, get: Get) -> ModelTensors:
        """``get(name)``'s tensors; what is not here is None."""
        there = lambda name: get(name) if name in self.shapes else None  # noqa: E731
        biases = {key: get(bias_name(key)) for key in self.biased}
        return ModelTensors(self.config, there, biases, None, None, get_wide=lambda name: None)

    @property
    def canonical_names(self) -> list[str]:
        apart = [str(name) for names in self.biased.values() for name in names]
        return [*(self.shapes.keys() - {bias_name(key) for key in self.biased}), *apart]

    def canonical(self, get: Get) -> dict[str, torch.Tensor]:
        """By canonical name, those of linears apart, as views of ``get(name)``'s."""
        named, sizes = {name: get(name) for name in self.shapes}, group_sizes(self.config)
        for key, names in self.biased.items():
            named.update(zip(map(str, names), named.pop(bias_name(key)).split(list(sizes[key][1]))))
        return named
