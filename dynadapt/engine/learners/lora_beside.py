"""LoRA(also=...): norms and biases that learn beside the adapters of one stream, in the same flat buffers, by the same update."""

from __future__ import annotations

import torch

from dynadapt.model.layout import has_offset

from .beside_tensors import BesideTensors
from .lora import LoraLearner


class LoraBesideLearner(LoraLearner):
    """For one slot. See ``LoraLearner`` for the arguments.

    Behind the adapters lie the norms and biases, whose prior is the model's, rounded to the working dtype (not norm weights 1 + w, ``layout.has_offset``). The decoder reads them through
    ``weights_view`` and adds to their gradients in ``gradient_view`` (weights.py).
    """

    def __init__(self, adapt, optimizer, model, groups, parts, dtype, seed: int, device="cpu", rates=None, squares=None):
        self.beside, self.model, self.dtype = BesideTensors(adapt, model.config), model, dtype
        super().__init__(adapt, optimizer, groups, parts, 1, dtype, seed, device, True, rates, squares)

    def _shapes_beside(self):
        return self.beside.shapes

    def _initial(self, seed: int) -> torch.Tensor:
        prior = super()._initial(seed)
        for name, view in self.beside.canonical(lambda name: self.layout.view(prior, name)).items():
            if not prior.is_meta:
                value = self.model.tensor(name)
                view.copy_(value if has_offset(self.beside.config, name) else value.to(self.dtype))
        return prior

    def bind(self) -> None:
        super().bind()
        read = lambda name: self.state.master if has_offset(self.beside.config, name) else self.state.compute  # noqa: E731
        gradients = self.state.take_gradients()
        self.weights_view = self.beside.views(lambda name: self.layout.view(read(name), name)[0])
        self.gradient_view = self.beside.views(lambda name: self.layout.view(gradients, name)[0])
        self.added_to = gradients[0, self.layout.offsets[next(iter(self.beside.shapes))] :]

    def begin_gradient(self, accumulate: bool) -> None:
        """Before a backward: what gradients are added to starts from zero, unless they add up over segments."""
        if not accumulate:
            self.added_to.zero_()
