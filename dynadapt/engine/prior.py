"""The model as it was loaded, scored beside the one that learns: static passes through the frozen weights that are there already.

It is a step of its own in which nothing learns, with segment memory of its own: what it scores is what a static engine of the same
settings scores, to the bit (with base="float8" weights that learn are those in ``dtype`` here, as where they start). Buffers, ops and
the ledger are the learning engine's; its FLOPs count as forward.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from dynadapt.adapt.methods import whole_model
from dynadapt.ops import make_parts

from .buffers import StepCall
from .decoder import Decoder
from .drivers import Captured, Eager
from .handover import Handover
from .memory import MemoryState, SegmentMemory
from .step import Step
from .weights import FrozenWeights, group_sizes, source_weight


class Prior:
    """The prior of ``streams`` streams.

    Args:
        engine: whose model, weights and settings; it is made up to its driver.
        first: layers below it are not run again: what enters it is taken from the engine's passes, in which nothing learns so far down.
    """

    def __init__(self, engine, streams: int, first: int = 0):
        given, d = engine.settings, engine.decoder
        static = replace(
            given,
            adapt=None,
            optimizer=None,
            streams=streams,
            shared=False,
            every=1,
            accumulate=False,
            reset="never",
            guard=None,
            keep=None,
            learn_from=None,
            hypergradient=None,
            batch=None if given.batch is None else min(given.batch, streams),
        )
        memory, dtype, device = engine.memory, engine.torch_dtype, engine.device
        store = MemoryState.of(engine.config, memory, streams, dtype, device, first) if isinstance(memory, SegmentMemory) else None
        self.own: Any = None  # weights of which the engine has none that stay
        weights = self._weights(engine)
        decoder = Decoder(
            engine.config, weights, engine.ops, engine.workspace, engine.ledger, d.rope, store, d.recompute, static.fixed, first
        )
        step = Step(static, decoder, [], torch.zeros(streams, device=device), engine.calls.moving, asks=not static.fixed)
        if first:
            width, apart = given.context + given.segment, engine.streams // streams
            handover = Handover(first, engine.streams, width, engine.config.hidden_size, dtype, device, apart)
            step.handover = engine.driver.step.handover = handover
        self.driver = Captured(step) if static.fixed else Eager(step)

    def _weights(self, engine) -> FrozenWeights:
        """The engine's frozen weights, and beside them the prior of those that learn."""
        given, model = engine.settings, engine.model
        if whole_model(given.adapt):
            self.own = FrozenWeights(model, engine.backend, engine.torch_dtype, set(), engine.device)
            return self.own
        if not given.owns_weights:
            return engine.weights
        sizes, self.own = group_sizes(engine.config), {}
        for (layer, group), parts in engine.weights.parts.items():
            if parts is None:
                sources = [source_weight(model, layer, group, p) for p in range(len(sizes[layer, group][1]))]
                self.own[layer, group] = make_parts(sources, engine.backend, engine.torch_dtype, engine.device)
        frozen = copy.copy(engine.weights)
        frozen.parts = {**engine.weights.parts, **self.own}
        return frozen

    @property
    def memory(self) -> MemoryState | None:
        return self.driver.step.decoder.memory

    def run(self, call: StepCall, histories: dict[int, list[int]]) -> torch.Tensor:
        """Scores [R, T] of a call, 0 in rows that rest. ``histories``: with ``Overlap``, the tokens before each stream's segment."""
        states = self.driver.step.states
        for stream, history in histories.items():
            states[stream].history = history
        try:
            return self.driver.run(call)[0]
        except BaseException:
            self.driver.drop_recordings()  # one may never have run to its end
            raise
