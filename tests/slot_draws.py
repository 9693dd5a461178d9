"""Layers whose streams have adapters of ranks and scales of their own: drawn inputs of the three ops that take them."""

from dataclasses import dataclass

import torch

from dynadapt.ops import DenseMatrix
from dynadapt.ops.slot_adapters import SlotAdapters

RANKS = [(4, 0, 16), (0, 0, 0), (1, 7, 3), (17, 17, 17), (0, 33, 0)]  # of each slot, in parts of a layer


@dataclass
class Layer:
    """One draw: x [N, K], dy [N, O], the parts' weights, adapters and gradients in flat buffers, and who is in the call."""

    x: torch.Tensor
    dy: torch.Tensor
    weights: list
    bias: torch.Tensor
    flat: torch.Tensor
    gradient: torch.Tensor
    slots: torch.Tensor
    own: SlotAdapters

    @property
    def sizes(self):
        return [w.shape[0] for w in self.weights]

    def of(self, i: int) -> slice:
        """Rows of stream i."""
        each = len(self.x) // len(self.slots)
        return slice(i * each, (i + 1) * each)

    def low(self):
        return torch.full((len(self.x), self.own.width), float("nan"), dtype=self.x.dtype, device=self.x.device)

    def to(self, dtype, device="cpu"):
        """The same numbers, rounded, in another dtype; gradients stay wide."""
        moved = [t.to(device, dtype) for t in (self.x, self.dy, self.bias, self.flat)]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weights = [w.to(device, dtype) for w in self.weights]
        own = SlotAdapters(self.own.pairs, self.own.places, device)
        return Layer(moved[0], moved[1], weights, moved[2], moved[3], self.gradient.to(device, wide), self.slots.to(device), own)


def draw(seed=0, each=21, k=37, sizes=(33, 9, 20), slots=(3, 1, 0, 4), ranks=RANKS, dtype=torch.float64) -> Layer:
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    n, o, at, places = each * len(slots), sum(sizes), 5, []
    for own in ranks:
        bt = at + sum(own) * k + 3  # nothing is aligned
        places.append((at, bt) if any(own) else (0, 0))
        at = bt + max(own) * o
    pairs = [[(rank, 0.5 + 0.3 * p + 0.07 * s) for p, rank in enumerate(own)] for s, own in enumerate(ranks)]
    return Layer(
        rand(n, k),
        rand(n, o),
        [rand(size, k) / k**0.5 for size in sizes],
        rand(o),
        0.3 * rand(at),
        rand(at),
        torch.tensor(slots, dtype=torch.int32),
        SlotAdapters(pairs, places),
    ).to(dtype)


def together(layer: Layer, ops, pack=DenseMatrix, accumulate=False):
    """(u, y, dU, dx, gradient) of a call with all streams. ``ops``: the functions of the three ops, by name."""
    parts, l = [pack(w) for w in layer.weights], layer
    u, dU, gradient = l.low(), l.low(), l.gradient.clone()
    y, dx = (torch.full((len(l.x), width), float("nan"), dtype=l.x.dtype, device=l.x.device) for width in (sum(l.sizes), l.x.shape[1]))
    ops["linear_forward"](l.x, parts, l.bias, l.flat, l.flat, l.slots, l.own, u, y)
    ops["linear_backward"](l.dy, parts, l.flat, l.flat, l.slots, l.own, dU, dx)
    ops["lora_gradient"](l.dy, l.x, u, dU, l.sizes, l.own, l.slots, gradient, gradient, accumulate)
    return u, y, dU, dx, gradient


def alone(layer: Layer, ops, i: int, pack=DenseMatrix, accumulate=False):
    """The same of stream i as a call of its own, in the form that knows one rank of each part: u and dU are as wide as its A."""
    parts, l, rows, slot = [pack(w) for w in layer.weights], layer, layer.of(i), int(layer.slots[i])
    x, dy, gradient, none = l.x[rows].contiguous(), l.dy[rows].contiguous(), l.gradient.clone(), l.slots.new_zeros(1)
    pairs, width = list(l.own.pairs[slot]), sum(l.own.ranks(slot))
    empty = lambda columns: torch.full((len(x), columns), float("nan"), dtype=x.dtype, device=x.device)  # noqa: E731
    y, dx = empty(sum(l.sizes)), empty(x.shape[1])
    if not width:
        ops["linear_forward"](x, parts, l.bias, None, None, none, 1.0, None, y)
        ops["linear_backward"](dy, parts, None, None, none, 1.0, None, dx)
        return empty(0), y, empty(0), dx, gradient
    u, dU = empty(width), empty(width)
    a, bt = l.own.views(slot, l.flat, l.flat, x.shape[1], sum(l.sizes))
    da, dbt = l.own.views(slot, gradient, gradient, x.shape[1], sum(l.sizes))
    ops["linear_forward"](x, parts, l.bias, a, bt, none, pairs, u, y)
    ops["linear_backward"](dy, parts, a, bt, none, pairs, dU, dx)
    ops["lora_gradient"](dy, x, u, dU, l.sizes, pairs, none, da, dbt, accumulate)
    return u, y, dU, dx, gradient
