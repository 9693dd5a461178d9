"""Learners, from what is to be learned and with which optimizer."""

from __future__ import annotations

from functools import partial

import torch

from dynadapt.adapt.methods import LoRA, learns_beside, rates_differ, whole_model
from dynadapt.adapt.targets import adapted_parts, rate_factors, targeted
from dynadapt.engine.weights import adaptable_sizes, group_sizes, source_weight, squared_rows

from .beside import NormBiasLearner
from .lora import LoraLearner
from .lora_beside import LoraBesideLearner
from .mixed import MixedAdapters
from .rows import RowLearner
from .whole_model import ModelLearner


def make_learner(
    adapt,
    optimizer,
    model,
    dtype: torch.dtype,
    backend: str,
    device,
    *,
    slots: int = 1,
    seed: int = 0,
    keep_prior: bool = False,
    keep_grad: bool = True,
):
    """What ``adapt`` learns with.

    Args:
        slots: sets of adapters, for LoRA alone; weights of the model are one set a learner.
        keep_prior: the prior of weights that learn is kept beside them. keep_grad: so is their gradient.
    """
    if isinstance(adapt, LoRA):
        parts = adapted_parts(adapt, model.config)
        rates = rate_factors(adapt, model.config, parts) if rates_differ(adapt) else None
        squares = {key: squared_rows(model, *key, dtype, device) for key in parts} if adapt.dora else None
        if adapt.also:
            return LoraBesideLearner(adapt, optimizer, model, adaptable_sizes(model.config), parts, dtype, seed, device, rates, squares)
        return LoraLearner(adapt, optimizer, adaptable_sizes(model.config), parts, slots, dtype, seed, device, keep_grad, rates, squares)
    if whole_model(adapt):
        return ModelLearner(adapt, optimizer, model, dtype, backend, device, keep_prior)
    if learns_beside(adapt):
        return NormBiasLearner(adapt, optimizer, model, dtype, backend, device, keep_prior)
    source = partial(source_weight, model)
    groups, learning = group_sizes(model.config), targeted(adapt, model.config)
    return RowLearner(adapt, optimizer, groups, learning, dtype, backend, source, device, keep_prior, keep_grad)


def make_learners(settings, model) -> list:
    """Of an engine: one LoRA learner serves all streams that learn in one way; weights of the model's own need a learner a set."""
    if not settings.learns:
        return []
    make = partial(
        make_learner,
        model=model,
        dtype=settings.torch_dtype,
        backend=settings.backend,
        device=settings.device,
        seed=settings.seed,
        keep_prior=settings.fixed and settings.watches,
        keep_grad=settings.why_not_fused is not None,
    )
    if settings.apart:
        return [make(settings.adapt, settings.optimizer) for _ in range(settings.sets)]
    learners = [make(way.adapt, way.optimizer, slots=len(way.streams)) for way in settings.ways]
    for learner in learners if settings.hypergradient is not None else ():
        learner.state.move_rates(settings.hypergradient)
    return learners


def mixed_adapters(settings, learners, groups) -> MixedAdapters | None:
    """The adapters of all ``learners`` as passes see them, ``groups`` being the model's; None where one serves all streams, or none is there."""
    if settings.apart or len(learners) < 2:
        return None
    streams = [way.streams for way in settings.ways]
    return MixedAdapters(learners, streams, groups, settings.device, fixed=settings.fixed)
