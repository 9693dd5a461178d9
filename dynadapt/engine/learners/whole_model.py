"""Full(targets="model"): every parameter of the model learns, as in ordinary training.

``ModelLearner`` learns all linear weights, and beside them (beside.py) what else there is: norms, biases, embedding, positions, head.
"""

from __future__ import annotations

from typing import Any

import torch

from dynadapt.engine.weights import ModelTensors, biased_groups, group_sizes, look_up_table
from dynadapt.model.layout import layout, tensor_shapes
from dynadapt.ops import DenseMatrix, make_matrix

from .beside import BesideLearner


class ModelLearner(BesideLearner):
    """Learns all of a model, for one slot. See ``RowLearner`` for the arguments.

    In the flat buffers come, behind the linear weights: the head; then what gradients are added to (an embedding of its own,
    positions, norms, biases). A tied embedding is the head: the head's gradient is written first, the look-up's added.
    """

    packed_head: Any = None  # a Matrix, where the head is one of its own

    # ---- where everything lies

    @property
    def head_name(self) -> str:
        return "embed.weight" if self.config.tied_head else "head.weight"

    def _biased(self):
        return biased_groups(self.config)

    def _shapes_around(self) -> dict[str, tuple[int, ...]]:
        """Canonical names and shapes of all that is no linear weight."""
        linear = {name for names in self.biased.values() for name in names}
        linear |= {f"layers.{i}.{part}.weight" for i, group in group_sizes(self.config) for part in layout(self.config, i)[group]}
        found = {name: shape for name, shape in tensor_shapes(self.config).items() if name not in linear}
        for key, names in self.biased.items():
            if None in names:
                raise ValueError(
                    f"targets='model': {self.config.family} has a bias on some of the linears of layer {key[0]}, {key[1]}, "
                    "not on all; expected all or none of them"
                )
        return {self.head_name: found.pop(self.head_name), **found, **self._bias_shapes()}

    def _bind(self) -> None:
        grad = self._gradient
        if self.backend == "cpu":
            head = self.packed_head = make_matrix(self._master(self.head_name), self.backend, self.dtype)
        else:
            head = DenseMatrix(self._plain(self.head_name), copy=False)
        table = look_up_table(self.config, head, self._plain)
        self.weights_view = ModelTensors(self.config, self._plain, self._biases(self._plain), head, table)
        self.gradient_view = ModelTensors(self.config, grad, self._biases(grad), grad(self.head_name), grad("embed.weight"))
        added = [name for name in self.around if name != self.head_name]
        self.added_to = self.state.take_gradients()[0, self.layout.offsets[added[0]] :]

    # ---- values

    def _write_around(self) -> None:
        super()._write_around()
        if self.packed_head is not None:
            self.packed_head.update_rows(None, self._master(self.head_name))

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter as it is now, by canonical name: what ``model.from_state`` takes."""
        return {**super().parameters(), **self.unpacked(self.config)}
