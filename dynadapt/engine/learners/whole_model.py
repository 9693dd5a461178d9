"""Full(targets="model"): every parameter of the model learns, as in ordinary training.

``ModelLearner`` is a ``RowLearner`` of all linear weights whose flat buffers also hold what lies around them, so that one
update clips, moves and rounds everything together. The decoder reads it through ``weights_view`` and leaves gradients in
``gradient_view``, both of the form of the frozen weights (weights.py).
"""

from __future__ import annotations

from typing import Any

import torch

from dynadapt.adapt.methods import Full
from dynadapt.adapt.targets import targeted
from dynadapt.engine.weights import ModelTensors, biased_groups, group_sizes, look_up_table, source_weight
from dynadapt.model.layout import layout, tensor_shapes
from dynadapt.ops import DenseMatrix, make_matrix

from .rows import RowLearner


class ModelLearner(RowLearner):
    """Learns all of a model, for one slot. See ``RowLearner`` for the arguments.

    In the flat buffers come, behind the linear weights: the head; then what gradients are added to (an embedding of its own,
    positions, norms, biases). A tied embedding is the head: the head's gradient is written first, the look-up's added.
    """

    def __init__(self, adapt: Full, optimizer, model, dtype: torch.dtype, backend: str, device="cpu", keep_prior: bool = False):
        self.model, self.config = model, model.config
        self.biased = biased_groups(self.config)
        self.around = self._shapes_around()
        self.copies: dict[str, torch.Tensor] = {}
        self.packed_head: Any = None  # a Matrix, where the head is one of its own
        source = lambda layer, group, part: source_weight(model, layer, group, part)  # noqa: E731
        super().__init__(
            adapt, optimizer, group_sizes(self.config), targeted(adapt, self.config), dtype, backend, source, device, keep_prior
        )
        self._bind()

    # ---- where everything lies

    @property
    def head_name(self) -> str:
        return "embed.weight" if self.config.tied_head else "head.weight"

    def _shapes_around(self) -> dict[str, tuple[int, ...]]:
        """Canonical names and shapes of all that is no linear weight; a group's biases are one tensor, {layer}.{group}.bias."""
        linear = {name for names in self.biased.values() for name in names}
        linear |= {f"layers.{i}.{part}.weight" for i, group in group_sizes(self.config) for part in layout(self.config, i)[group]}
        found = {name: shape for name, shape in tensor_shapes(self.config).items() if name not in linear}
        shapes = {self.head_name: found.pop(self.head_name), **found}
        for key, names in self.biased.items():
            if None in names:
                raise ValueError(
                    f"targets='model': {self.config.family} has a bias on some of the linears of layer {key[0]}, {key[1]}, "
                    "not on all; expected all or none of them"
                )
            shapes[self._bias_name(key)] = (sum(group_sizes(self.config)[key][1]),)
        return shapes

    @staticmethod
    def _bias_name(key) -> str:
        return f"{key[0]}.{key[1]}.bias"

    def _shapes(self):
        return {**super()._shapes(), **self.around}

    def _bind(self) -> None:
        """The views that the decoder reads and writes; their addresses never change."""
        grad = lambda name: self.layout.view(self.state.grad, name)[0]  # noqa: E731
        bias = lambda get: {key: get(self._bias_name(key)) for key in self.biased}  # noqa: E731
        if self.backend == "cpu":
            head = self.packed_head = make_matrix(self._master(self.head_name), self.backend, self.dtype)
        else:
            head = DenseMatrix(self._plain(self.head_name), copy=False)
        table = look_up_table(self.config, head, self._plain)
        self.weights_view = ModelTensors(self.config, self._plain, bias(self._plain), head, table)
        self.gradient_view = ModelTensors(self.config, grad, bias(grad), grad(self.head_name), grad("embed.weight"))
        added = [name for name in self.around if name != self.head_name]
        self.added_to = self.state.take_gradients()[0, self.layout.offsets[added[0]] :]

    def _master(self, name: str) -> torch.Tensor:
        return self.layout.view(self.state.master, name)[0]

    def _plain(self, name: str) -> torch.Tensor:
        """The tensor that ops read: a view of the flat buffer in the working dtype, or where there is none a copy."""
        if self.in_place or self.dtype == self.state.master.dtype:
            return self.layout.view(self.state.compute, name)[0]
        if name not in self.copies:
            self.copies[name] = self._master(name).to(self.dtype)
        return self.copies[name]

    # ---- values

    def _prior_around(self, name: str) -> torch.Tensor:
        """The prior of one tensor, rounded to the working dtype."""
        names = {self._bias_name(key): names for key, names in self.biased.items()}.get(name, [name])
        return torch.cat([self.model.tensor(n).to(device=self.device, dtype=self.dtype) for n in names])

    def _take_masters(self) -> None:
        super()._take_masters()
        for name in self.around:
            value = self._prior_around(name)
            for buffer in (self.state.master, self.state.working, self.state.prior):
                if buffer is not None:
                    self.layout.view(buffer, name).copy_(value)
        self._write_around()

    def _write_back(self) -> None:
        super()._write_back()
        self._write_around()

    def _write_around(self) -> None:
        """What is read from elsewhere than the flat buffers follows the masters."""
        for name, tensor in self.copies.items():
            tensor.copy_(self._master(name))
        if self.packed_head is not None:
            self.packed_head.update_rows(None, self._master(self.head_name))

    def begin_gradient(self, accumulate: bool) -> None:
        """Before a backward: what gradients are added to starts from zero, unless they add up over segments."""
        if not accumulate:
            self.added_to.zero_()

    def load(self, saved) -> None:
        super().load(saved)
        self._write_around()

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter as it is now, by canonical name: what ``model.from_state`` takes."""
        named = {name: self._master(name).to(self.dtype, copy=True) for name in self.around}
        for (layer, group), matrices in self.matrices.items():
            parts = layout(self.config, layer)[group]
            for part, matrix in zip(parts, matrices):
                weight = torch.empty(matrix.shape, dtype=self.dtype, device=self.device)
                matrix.unpack(weight)
                named[f"layers.{layer}.{part}.weight"] = weight
            if (layer, group) in self.biased:
                biases = named.pop(self._bias_name((layer, group))).split(list(self.sizes[layer, group][1]))
                named.update({f"layers.{layer}.{part}.bias": bias for part, bias in zip(parts, biases)})
        return named
