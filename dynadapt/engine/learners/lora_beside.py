"""LoRA(also=...): norms and biases that learn beside the adapters of one stream, in the same flat buffers, by the same update."""

from __future__ import annotations

import torch

from .beside_tensors import BesideTensors
from .lora import LoraLearner


class LoraBesideLearner(LoraLearner):
    """For one slot. See ``LoraLearner`` for the arguments.

    Behind the adapters lie the norms and biases, whose prior is the model's, rounded to the working dtype. The decoder reads them through
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
                view.copy_(self.model.tensor(name).to(self.dtype))
        return prior

    def bind(self) -> None:
        super().bind()
        of = lambda buffer: lambda name: self.layout.view(buffer, name)[0]  # noqa: E731
        gradients = self.state.take_gradients()
        self.weights_view, self.gradient_view = self.beside.views(of(self.state.compute)), self.beside.views(of(gradients))
        self.added_to = gradients[0, self.layout.offsets[next(iter(self.beside.shapes))] :]

    def begin_gradient(self, accumulate: bool) -> None:
        """Before a backward: what gradients are added to starts from zero, unless they add up over segments."""
        if not accumulate:
            self.added_to.zero_()
