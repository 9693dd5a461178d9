"""LoRA adapters of all streams: their flat buffers, their views, their gradients."""

from __future__ import annotations

import math

import torch

from dynadapt.adapt.methods import LoRA, targeted

from .flat import FlatLayout, FlatState
from .fused import Fused


class LoraLearner:
    """Adapters for the (layer, group) pairs that ``adapt`` targets.

    A [slots, P R, K] stacks the P parts of a group, Bt [slots, R, O] lays their outputs side by side
    (see ops/linear.py).
    """

    owns_weights = False
    weights_view = gradient_view = None

    def __init__(self, adapt: LoRA, optimizer, groups, slots: int, dtype: torch.dtype, seed: int, device="cpu", keep_grad: bool = True):
        """``groups``: {(layer, group): (K, part sizes)} for every linear group of the model, in forward order."""
        if optimizer.uses_statistics:
            raise ValueError(
                f"optimizer={type(optimizer).__name__} with adapt=LoRA: the gradient of A is zero at the prior (B = 0), so its frozen "
                "statistics are zero too; use RMS with RowSparse or Full, or Adam with LoRA"
            )
        layers = 1 + max(layer for layer, _ in groups)
        self.adapt, self.scale = adapt, adapt.scale
        self.learning = targeted(adapt, layers)
        self.sizes = {key: groups[key] for key in self.learning}
        shapes: dict[str, tuple[int, ...]] = {}
        for (layer, group), (k, parts) in self.sizes.items():
            shapes[f"{layer}.{group}.A"] = (len(parts) * adapt.rank, k)
            shapes[f"{layer}.{group}.Bt"] = (adapt.rank, sum(parts))
        self.layout = FlatLayout(shapes)
        self.state = FlatState(self.layout, slots, optimizer, dtype, separate_working=True, device=device, keep_grad=keep_grad)
        self.state.prior = self._initial(seed).to(device)
        self._bind()
        for slot in range(slots):
            self.reset(slot)

    @property
    def learned_parameters(self) -> int:
        return self.layout.parameters

    def _initial(self, seed: int) -> torch.Tensor:
        if self.state.master.is_meta:  # planned, not run
            return self.state.master.new_empty(self.layout.size)
        prior = torch.zeros(self.layout.size, dtype=self.state.master.dtype)  # drawn on the CPU: the same on every device
        generator = torch.Generator().manual_seed(seed)
        for key, (k, _) in self.sizes.items():
            a = self.layout.view(prior, "{}.{}.A".format(*key))
            bound = 1 / math.sqrt(k)
            a.copy_(torch.empty(a.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
        return prior

    def _bind(self) -> None:
        view = self.layout.view
        self.views = {}
        for layer, group in self.learning:
            a, b = f"{layer}.{group}.A", f"{layer}.{group}.Bt"
            self.views[layer, group] = view(self.state.compute, a), view(self.state.compute, b)
        self.gradient_views: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
        self.viewed: torch.Tensor | None = None  # the gradients that these are of
        self.fused: Fused | None = None  # set while the gradient kernels of a step update

    def adapter(self, layer: int, group: str):
        """(A, Bt) in the working dtype, or (None, None) where nothing learns."""
        return self.views.get((layer, group), (None, None))

    def gradient(self, ops, layer, group, dy, x, u, dU, slots, accumulate) -> None:
        """Write or add to the adapter gradients of ``slots`` for one group, or with ``fused`` set move the adapters at once."""
        given = (dy, x, u, dU, list(self.sizes[layer, group][1]), self.scale, slots)
        f = self.fused
        if f is not None:
            states = (self.state.state_of(f"{layer}.{group}.{part}") for part in ("A", "Bt"))
            ops.lora_gradient_update(*given, f.moving, *states, f.rule, f.lr, f.skipped)
        else:
            ops.lora_gradient(*given, *self._gradients(layer, group), accumulate)

    def _gradients(self, layer: int, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Where (dA, dBt) of one group lie; kept, since a step asks for those of every group and the host makes them slowly."""
        if self.viewed is not self.state.grad:
            self.viewed, self.gradient_views = self.state.grad, {}
        views = self.gradient_views.get((layer, group))
        if views is None:
            a, b = (self.layout.view(self.state.grad, f"{layer}.{group}.{part}") for part in ("A", "Bt"))
            views = self.gradient_views[layer, group] = (a, b)
        return views

    def update(self, ops, slots, lr, norms=None, skipped=None):
        return self.state.update(ops.update, slots, lr, norms, skipped)

    def reset(self, slot: int) -> None:
        """Adapter and optimizer state of one slot back to the prior."""
        self.state.master[slot] = self.state.prior
        self.state.clear(slot)
        if self.state.working is not None:
            self.state.working[slot] = self.state.prior

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.state.tensors()

    def load(self, saved) -> None:
        self.state.load(saved)
