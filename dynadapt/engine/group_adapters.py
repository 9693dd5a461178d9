"""What a decoder's passes ask a learner (None: nothing learns) about the adapters of one group of linears."""

from __future__ import annotations

from dynadapt.ops.slot_adapters import SlotAdapters

from .batch import Batch


def adapter_of(learner, layer: int, group: str):
    """(A, Bt, the ops' scale, columns of u) of one group; None twice where it has no adapter."""
    A, Bt = (None, None) if learner is None else learner.adapter(layer, group)
    if A is None:
        return None, None, 0.0, 0
    scale = learner.scales[layer, group]
    return A, Bt, scale, scale.width if isinstance(scale, SlotAdapters) else A.shape[1]


def flops_of(formula, learner, layer: int, group: str, batch: Batch, rows: int, sizes, *more) -> int:
    """Of a product with a group's weights and adapters; where ranks are each stream's own, each has its share of the rows."""
    k, parts = sizes
    A, _, _, _ = adapter_of(learner, layer, group)
    ranks = 0 if A is None else learner.ranks_of(layer, group, batch.streams)
    if isinstance(ranks, list):
        return sum(formula(rows // len(ranks), k, parts, own, *more) for own in ranks)
    return formula(rows, k, parts, ranks, *more)


def has_lengths(learner, layer: int, group: str) -> bool:
    """Whether a group's adapters are DoRA's."""
    return learner is not None and (layer, group) in learner.magnitudes
