"""LoRA adapters of all streams: their flat buffers, their views, their gradients."""

from __future__ import annotations

import math

import torch

from dynadapt.adapt.methods import EMBED, LoRA, scale_of
from dynadapt.engine.weights import ModelTensors
from dynadapt.ops.linear import low_rank_size

from .flat import Block, FlatLayout, FlatState
from .fused import Fused


class LoraLearner:
    """Adapters for the parts of groups that ``adapt`` targets.

    A [slots, sum R_p, K] stacks the P parts of a group, Bt [slots, R, O] lays their outputs side by side, R being the largest R_p
    (see ops/linear.py). What of Bt lies beyond a part's rank is neither read nor learned, and stays zero.
    """

    owns_weights = False
    weights_view: ModelTensors | None = None  # what learns beside the adapters
    gradient_view: ModelTensors | None = None

    def __init__(
        self,
        adapt: LoRA,
        optimizer,
        groups,
        parts,
        slots: int,
        dtype: torch.dtype,
        seed: int,
        device="cpu",
        keep_grad: bool = True,
        rates: dict[tuple[int, str], list[float]] | None = None,
        squares: dict[tuple[int, str], torch.Tensor] | None = None,
    ):
        """``groups``: {(layer, group): (K, part sizes)} for every linear group of the model, its head and its embedding; ``parts``: {(layer, group): (rank, alpha)
        of each part} of those that learn, in forward order; ``rates``: the factor of each part's learning rate, None where all are alike
        (adapt/targets.py); ``squares``: with DoRA, the squared length of each output row of the groups' weights."""
        if optimizer.uses_statistics:
            raise ValueError(
                f"optimizer={type(optimizer).__name__} with adapt=LoRA: the gradient of A is zero at the prior (B = 0), so its frozen "
                "statistics are zero too; use RMS with RowSparse or Full, or Adam with LoRA"
            )
        self.adapt, self.parts_of, self.squares = adapt, parts, squares or {}
        self.learning = list(parts)
        self.sizes = {key: groups[key] for key in self.learning}
        self.ranks = {key: tuple(rank for rank, _ in own) for key, own in parts.items()}
        self.scales = {key: self._scale(own) for key, own in parts.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        matrices: dict[str, list[Block]] = {}
        unused = 0
        for (layer, group), (k, sizes) in self.sizes.items():
            ranks = self.ranks[layer, group]
            shapes[f"{layer}.{group}.A"] = (sum(ranks), k)
            shapes[f"{layer}.{group}.Bt"] = (max(ranks), sum(sizes))
            places = [(rank, size, sum(ranks[:p]), sum(sizes[:p])) for p, (rank, size) in enumerate(zip(ranks, sizes)) if rank]
            matrices[f"{layer}.{group}.A"] = [(row, rank, 0, k) for rank, _, row, _ in places]
            matrices[f"{layer}.{group}.Bt"] = [(0, rank, column, size) for rank, size, _, column in places]
            if adapt.dora:
                shapes[f"{layer}.{group}.m"] = (sum(sizes),)
                unused += sum(size for rank, size in zip(ranks, sizes) if not rank)
            unused += max(ranks) * sum(sizes) - low_rank_size(k, sizes, ranks)[1]
        self.layout = FlatLayout({**shapes, **self._shapes_beside()}, matrices, unused)
        self.state = FlatState(self.layout, slots, optimizer, dtype, separate_working=True, device=device, keep_grad=keep_grad)
        if rates is not None:
            self.state.rate_factor = self._rate_factor(rates, device)
        self.initial = self.state.prior = self._initial(seed).to(device)
        self.kept = self._mask(device) if adapt.keep_a else None
        self.bind()
        for slot in range(slots):
            self.start(slot, self.initial)

    def _shapes_beside(self) -> dict[str, tuple[int, ...]]:
        """Of what learns beside adapters, by name: nothing here (lora_beside.py)."""
        return {}

    def _scale(self, parts: list[tuple[int, float]]) -> float | list[tuple[int, float]]:
        """The ``scale`` of the ops for one group: a number where its parts are alike."""
        own = [(rank, scale_of(self.adapt, rank, alpha) if rank else 0.0) for rank, alpha in parts]
        return own[0][1] if len(set(own)) == 1 else own

    @property
    def learned_parameters(self) -> int:
        return self.layout.parameters

    @property
    def common(self) -> list[torch.Tensor | None]:
        """What all slots share."""
        return [self.initial, self.kept, self.state.rate_factor]

    def _initial(self, seed: int) -> torch.Tensor:
        if self.state.master.is_meta:  # planned, not run
            return self.state.master.new_empty(self.layout.size)
        prior = torch.zeros(self.layout.size, dtype=self.state.master.dtype)  # drawn on the CPU: the same on every device
        generator = torch.Generator().manual_seed(seed)
        for key, (k, _) in sorted(self.sizes.items(), key=lambda item: item[0][1] == EMBED):  # last: the others begin as without it
            half = self._half(prior, key)
            drawn, bound = torch.empty(half.shape, dtype=torch.float32), 1 / math.sqrt(k)
            half.copy_(drawn.normal_(generator=generator) if key[1] == EMBED else drawn.uniform_(-bound, bound, generator=generator))
        for key, square in self.squares.items():
            self.layout.view(prior, "{}.{}.m".format(*key)).copy_(square.sqrt())
        return prior

    def _half(self, buffer: torch.Tensor, key: tuple[int, str]) -> torch.Tensor:
        """Of one group, the half that does not start at zero: A, and of the embedding Bt."""
        return self.layout.view(buffer, "{}.{}.{}".format(*key, "Bt" if key[1] == EMBED else "A"))

    def _rate_factor(self, rates, device) -> torch.Tensor:
        """[P], what the learning rate of each element is multiplied with."""
        factor = torch.ones(self.layout.size, dtype=self.state.master.dtype, device=device)
        for key, (_, sizes) in self.sizes.items():
            a, bt = (self.layout.view(factor, "{}.{}.{}".format(*key, half)) for half in ("A", "Bt"))
            for own, rows, columns in zip(rates[key], a.split(self.ranks[key]), bt.split(list(sizes), dim=1)):
                rows.fill_(own)
                columns.fill_(own * self.adapt.b_rate)
            if key in self.squares:
                for own, lengths in zip(rates[key], self.layout.view(factor, "{}.{}.m".format(*key)).split(list(sizes))):
                    lengths.fill_(own)
        return factor

    def _mask(self, device) -> torch.Tensor:
        """int8 [P], 1 where A is (of the embedding Bt): what stays when a slot goes back."""
        mask = torch.zeros(self.layout.size, dtype=torch.int8, device=device)
        for key in self.learning:
            self._half(mask, key).fill_(1)
        return mask

    def bind(self) -> None:
        """Views of where the state's tensors are now."""
        view = self.layout.view
        self.views = {}
        for layer, group in self.learning:
            a, b = f"{layer}.{group}.A", f"{layer}.{group}.Bt"
            self.views[layer, group] = view(self.state.compute, a), view(self.state.compute, b)
        self.magnitudes = {key: (view(self.state.master, "{}.{}.m".format(*key)), square) for key, square in self.squares.items()}
        self.gradient_views: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
        self.viewed: torch.Tensor | None = None  # the gradients that these are of
        self.fused: Fused | None = None  # set while the gradient kernels of a step update

    def adapter(self, layer: int, group: str):
        """(A, Bt) in the working dtype, or (None, None) where nothing learns."""
        return self.views.get((layer, group), (None, None))

    def ranks_of(self, layer: int, group: str, streams) -> tuple[int, ...]:
        """Each part's rank, which is that of all streams."""
        return self.ranks[layer, group]

    def gradient(self, ops, layer, group, dy, x, u, dU, slots, accumulate) -> None:
        """Write or add to the adapter gradients of ``slots`` for one group, or with ``fused`` set move the adapters at once."""
        given = (dy, x, u, dU, list(self.sizes[layer, group][1]), self.scales[layer, group], slots)
        f = self.fused
        if f is not None:
            states = (self.state.state_of(f"{layer}.{group}.{part}") for part in ("A", "Bt"))
            ops.lora_gradient_update(*given, f.moving, *states, f.rule, f.lr, f.skipped)
        else:
            ops.lora_gradient(*given, *self.gradients_of(layer, group), accumulate)

    def gradients_of(self, layer: int, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Where (dA, dBt) of one group lie; kept, since a step asks for those of every group and the host makes them slowly."""
        if self.viewed is not self.state.grad:
            self.viewed, self.gradient_views = self.state.grad, {}
        views = self.gradient_views.get((layer, group))
        if views is None:
            a, b = (self.layout.view(self.state.grad, f"{layer}.{group}.{part}") for part in ("A", "Bt"))
            views = self.gradient_views[layer, group] = (a, b)
        return views

    def magnitude_gradient(self, layer: int, group: str) -> torch.Tensor:
        """Of DoRA's m, [slots, O]."""
        return self.layout.view(self.state.take_gradients(), f"{layer}.{group}.m")

    def update(self, ops, slots, lr, norms=None, skipped=None):
        return self.state.update(ops.update, slots, lr, norms, skipped)

    def start(self, slot: int, adapter: torch.Tensor) -> None:
        """One slot's adapter is ``adapter`` [P]; its optimizer state starts anew."""
        self.state.master[slot] = adapter
        self.state.clear(slot)
        if self.state.working is not None:
            self.state.working[slot] = self.state.master[slot]

    def reset(self, slot: int, back: float = 1.0) -> None:
        """Adapter and optimizer state of one slot back to the prior; with ``keep_a`` A stays, and its moments go. With ``back`` < 1 the
        adapter goes that share of the way.

        The moments of A are of gradients through the B that is gone, and one count of steps corrects those of A and B. What of A is not
        finite goes back too: times a B of zero it would still not be zero.
        """
        priors = self.state.prior
        prior = self.initial if priors is None else priors[slot] if self.state.own_priors else priors
        mine = self.state.master[slot]
        if back < 1:
            prior = torch.lerp(mine, prior, back)
        self.start(slot, prior if self.kept is None else torch.where((self.kept != 0) & mine.isfinite(), mine, prior))

    def take_prior(self, slot: int, prior: torch.Tensor) -> None:
        """One slot's prior is ``prior`` [P] from now on. The first time the priors of all slots move in memory."""
        priors = self.state.prior
        if priors is None or not self.state.own_priors:
            priors = self.state.prior = self.initial.repeat(len(self.state.master), 1)
        priors[slot] = prior

    def slot_copy(self, slot: int) -> dict[str, torch.Tensor]:
        """All that one slot's next steps depend on."""
        return {name: t.clone() for name, t in self.state.slot(slot).items()}

    def slot_load(self, slot: int, saved) -> None:
        """One slot is where ``slot_copy`` was taken; where it had no prior of its own, that is the one that all began with."""
        if "prior" in saved or self.state.own_priors:
            self.take_prior(slot, saved.get("prior", self.initial).to(self.initial.device))
        self.state.slot_load(slot, {"prior": self.initial, **saved})

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.state.tensors()

    def load(self, saved) -> None:
        self.state.load(saved)
