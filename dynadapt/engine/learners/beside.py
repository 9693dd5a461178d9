"""What learns beside linear weights, or without them: tensors of the model in the same flat buffers, one update for all.

``BesideLearner`` is a ``RowLearner`` whose flat buffers also hold such tensors, behind the linear weights that it has. The decoder reads
them through ``weights_view`` and leaves gradients in ``gradient_view``, both of the form of the frozen weights (weights.py).
"""

from __future__ import annotations

import torch

from dynadapt.adapt.methods import Full
from dynadapt.adapt.targets import targeted
from dynadapt.engine.weights import group_sizes, source_weight
from dynadapt.model.layout import has_offset

from .beside_tensors import BesideTensors, bias_name
from .rows import RowLearner


class BesideLearner(RowLearner):
    """For one slot. See ``RowLearner`` for the arguments.

    ``around``: names and shapes of what it holds beside linear weights, canonical but for a group's biases, which are one tensor:
    {layer}.{group}.bias, of the groups in ``biased``.
    """

    biased: dict[tuple[int, str], list[str | None]]
    around: dict[str, tuple[int, ...]]
    added_to: torch.Tensor  # of the gradient, what a backward adds to and does not write

    def __init__(self, adapt: Full, optimizer, model, dtype: torch.dtype, backend: str, device="cpu", keep_prior: bool = False):
        self.adapt, self.model, self.config = adapt, model, model.config
        self.biased = self._biased()
        self.around = self._shapes_around()
        self.copies: dict[str, torch.Tensor] = {}
        source = lambda layer, group, part: source_weight(model, layer, group, part)  # noqa: E731
        learning = targeted(adapt, self.config)
        super().__init__(adapt, optimizer, group_sizes(self.config), learning, dtype, backend, source, device, keep_prior)
        self._bind()

    # ---- where everything lies

    def _biased(self) -> dict[tuple[int, str], list[str | None]]:
        """{(layer, group): the names of its parts' biases} of groups whose biases learn."""
        raise NotImplementedError

    def _shapes_around(self) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    def _bind(self) -> None:
        """The views that the decoder reads and writes; their addresses never change."""
        raise NotImplementedError

    def _bias_shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = group_sizes(self.config)
        return {bias_name(key): (sum(sizes[key][1]),) for key in self.biased}

    def _biases(self, get) -> dict[tuple[int, str], torch.Tensor]:
        return {key: get(bias_name(key)) for key in self.biased}

    def _shapes(self):
        return {**super()._shapes(), **self.around}

    def _master(self, name: str) -> torch.Tensor:
        return self.layout.view(self.state.master, name)[0]

    def _gradient(self, name: str) -> torch.Tensor:
        return self.layout.view(self.state.grad, name)[0]

    def _plain(self, name: str) -> torch.Tensor:
        """The tensor that ops read: a view of the flat buffer in the working dtype, or where there is none a copy. Of a norm weight 1 + w
        the master itself (``layout.has_offset``)."""
        if has_offset(self.config, name):
            return self._master(name)
        if self.in_place or self.dtype == self.state.master.dtype:
            return self.layout.view(self.state.compute, name)[0]
        if name not in self.copies:
            self.copies[name] = self._master(name).to(self.dtype)
        return self.copies[name]

    def _dtype_of(self, name: str) -> torch.dtype:
        return self.state.master.dtype if has_offset(self.config, name) else self.dtype

    # ---- values

    def _prior_around(self, name: str) -> torch.Tensor:
        """The prior of one tensor, rounded to the working dtype where that of the ops' is."""
        names = {bias_name(key): names for key, names in self.biased.items()}.get(name, [name])
        return torch.cat([self.model.tensor(n).to(device=self.device, dtype=self._dtype_of(n)) for n in map(str, names)])

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

    def begin_gradient(self, accumulate: bool) -> None:
        """Before a backward: what gradients are added to starts from zero, unless they add up over segments."""
        if not accumulate:
            self.added_to.zero_()

    def load(self, saved) -> None:
        super().load(saved)
        self._write_around()

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter that learns as it is now, by canonical name."""
        named = {name: self._master(name).to(self._dtype_of(name), copy=True) for name in self.around}
        sizes = group_sizes(self.config)
        for key, names in self.biased.items():
            named.update(zip(map(str, names), named.pop(bias_name(key)).split(list(sizes[key][1]))))
        return named


class NormBiasLearner(BesideLearner):
    """Full(targets="norms"), "biases" or both: what the decoder reads of the rest is frozen (``ModelTensors.over``)."""

    def _biased(self):
        self.tensors_beside = BesideTensors(self.adapt, self.config)
        return self.tensors_beside.biased

    def _shapes_around(self):
        return self.tensors_beside.shapes

    def _bind(self) -> None:
        self.weights_view, self.gradient_view = (self.tensors_beside.views(get) for get in (self._plain, self._gradient))
        self.added_to = self.state.take_gradients()[0]
