"""One pass of a step, from buffers whose numbers the host has filled and does not look at again.

``Step.run``:

1. forward, and the score, with the gradient of the loss where something is to be learned;
2. the change detectors look at the scores; a stream that they flag does not move;
3. backward, and the update of the streams that are due, in the gradient kernels or behind them;
4. flagged streams go back to the prior;
5. the segment enters memory.

Everything is tensor arithmetic of fixed shapes, so that a CUDA graph can hold it; what it decides is in ops/decisions.py. Where asking for a
number costs nothing (the eager CPU), ``asks`` lets the host look once, behind 2: a pass whose streams are all flagged, or of which nothing is to
be learned by its scores (selecting.py), then saves its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from dynadapt.adapt.methods import GROUPS
from dynadapt.adapt.resets import ChangePoint, ChangePoints
from dynadapt.adapt.selection import remembered
from dynadapt.ops import hypergradient
from dynadapt.ops import update as update_op

from .batch import Batch
from .buffers import Kind
from .decoder import Decoder
from .handover import Handover
from .learners.fused import Fused
from .learners.make import mixed_adapters
from .memory_after_pass import advance_memory, count_memory
from .plan import Pass, StreamState
from .selecting import chosen, means_of
from .settings import EngineSettings

Tensors = dict[str, torch.Tensor]


class Step:
    """What the passes of an engine's steps work on.

    Args:
        learners: one, or one a stream where streams have weights of their own, or one for each of the ways in which streams learn;
            none where nothing learns.
        lr: float32, one a set of weights.
        moving: called when a pass begins to change state.
        asks: whether the host may look at numbers. Else resets and memory are the device's work, by ops of their own.
    """

    def __init__(self, settings: EngineSettings, decoder: Decoder, learners: list, lr: torch.Tensor, moving: Callable, asks: bool):
        self.settings, self.decoder, self.learners, self.lr, self.moving, self.asks = settings, decoder, learners, lr, moving, asks
        self.mixed = mixed_adapters(settings, learners, decoder.sizes)
        self.states = [StreamState() for _ in range(settings.streams)]
        self.counters = torch.zeros(2, dtype=torch.int64, device=settings.device)  # updates, skipped updates
        self.changes = ChangePoints(settings.streams, settings.device) if settings.watches else None
        self.why_not_fused = settings.why_not_fused
        self.fresh = True  # no weight has moved yet, no segment has been remembered, nothing was restored
        self.depths = [settings.lowest(decoder.config)] * settings.streams
        if self.mixed is not None and not settings.fixed:  # else one recording serves all streams
            for way in settings.ways:
                depth = settings.lowest(decoder.config, way.streams[0])
                for stream in way.streams:
                    self.depths[stream] = depth
        self.handover: Handover | None = None  # to or from the passes of another step
        self.keeping: Any = None  # a Keeping, which adds to what an update goes by
        self.own_slots = bool(learners) and not settings.shared and not settings.apart

    @property
    def fused(self) -> bool:
        """Whether the gradient kernels update."""
        return bool(self.learners) and self.why_not_fused is None

    def learner(self, stream: int):
        """What one stream learns with; None where nothing learns."""
        if self.mixed is not None:
            return self.learners[self.mixed.home[stream][0]]
        return self.learners[stream if len(self.learners) > 1 else 0] if self.learners else None

    def together(self, p: Pass) -> Any:
        """What the streams of a pass learn with, as one."""
        return self.mixed or self.learner(p.streams[0])

    def slot(self, stream: int) -> int:
        """Where in its learner a stream's weights are."""
        if self.mixed is not None:
            return self.mixed.home[stream][1]
        return stream if self.own_slots else 0

    def lowest(self, streams: Sequence[int]) -> tuple[int, str] | None:
        """(layer, group) down to which the backward of a pass goes: where the lowest of its streams learns."""
        depths = {self.depths[stream] for stream in streams}
        return min(filter(None, depths), key=lambda depth: (depth[0], GROUPS.index(depth[1]))) if len(depths) > 1 else depths.pop()

    def batch_of(self, stream: int, inputs: torch.Tensor) -> Batch:
        """A pass of inputs [rows, T] with one stream's weights, each row with a memory of its own."""
        rows, one = inputs.shape[0], partial(torch.tensor, dtype=torch.int32, device=self.settings.device)
        return Batch(inputs, one([self.slot(stream)]), one(list(range(rows))), tuple(range(rows)))

    def put_back(self, stream: int, back: float = 1.0) -> None:
        """One stream's weights and optimizer state back to the prior; the weights of adapters, with ``back`` < 1, that share of the way."""
        if self.learners:
            partly = {} if back == 1 else {"back": back}
            self.learner(stream).reset(self.slot(stream), **partly)
            self._count_anew(stream)

    def return_to(self, stream: int, learned: Tensors) -> None:
        """One stream's weights and optimizer state are ``learned``, of a copy of its learner's."""
        self.learner(stream).state.slot_load(self.slot(stream), learned)
        self._count_anew(stream)

    def start(self, stream: int, adapter: torch.Tensor) -> None:
        """One stream's adapter is ``adapter`` [P]; all else that it learned, and what it counts since a reset, starts anew."""
        self.learner(stream).start(self.slot(stream), adapter)
        self._count_anew(stream)

    def _count_anew(self, stream: int) -> None:
        self.drop_gradient(stream)
        self.states[stream].since_reset = 0
        if self.changes is not None:
            self.changes.forget(stream)

    def drop_gradient(self, stream: int) -> None:
        """A stream's gradient that no update has used is gone, and where weights are shared, all streams' is."""
        for state in self.states if self.settings.shared else [self.states[stream]]:
            state.waiting = False

    def undo(self) -> bool:
        """Behind a failure: whether the engine is as it was before its first step. Later ones have gradients and scores to lose."""
        if self.fresh:
            for learner in self.learners:
                if learner.state.grad is not None:
                    learner.state.grad.zero_()
            if self.changes is not None:
                self.changes.load([ChangePoint()] * len(self.states))
        return self.fresh

    # ---- the device's part

    def run(self, kind: Kind, p: Pass, given: Tensors, made: Tensors, again: float) -> None:
        """One pass. ``given`` and ``made`` are as in buffers.py; ``again`` is the share of the inputs that were scored before.

        Of ``p`` only numbers are used that all passes of the kind have in common, unless ``asks``.
        """
        d, learner = self.decoder, self.together(p)
        lengths = None if d.memory is None else given["counts"]
        batch = Batch(given["inputs"], given["adapter"], given["slots"], p.streams, again, lengths)
        hidden = d.forward(batch, learner, self.lowest(p.streams) if kind.backward else None, handover=self.handover)
        weights = given["weights"] if kind.backward else None
        choose = partial(self._choose, p, given, made) if kind.selects else None
        _, dhidden = d.score(hidden, given.get("rows"), given["targets"], weights, kind.loss, given, choose, made["nll"])
        if "loss" in made:
            made["loss"].copy_(d.loss)
        self.moving()
        if self.changes is not None:
            self._watch(self.changes, p, given, made)
        if kind.backward and not self.nothing_to_learn(made):
            self._learn(kind, batch, dhidden, learner, given, made)
        elif kind.update:
            made["moving"].copy_(given["moving"])
        self.fresh = False
        if self.changes is not None and not self.asks:
            flagged = (d.ops.reset, made["reset"], given["adapter"])
            if self.mixed is None:
                learner.state.put_back(*flagged, learner.kept)
            else:
                self.mixed.put_back(*flagged)
        advance_memory(d, batch, p.counts if self.asks else given["counts"])

    def nothing_to_learn(self, made: Tensors) -> bool:
        """Whether the host sees that no stream of a pass is left to learn."""
        return all(self._resting(made))

    def _resting(self, made: Tensors) -> list[bool]:
        """``_still`` as far as the host sees it: a recorded step's rows are the device's to know, and asking would wait for it."""
        if self.asks and (self.changes is not None or "kept" in made):
            return self._still(made).tolist()
        return [False] * len(made["reset"])

    def _still(self, made: Tensors) -> torch.Tensor:
        """Which rows of a pass don't learn by what was scored: their streams are flagged, or none of their tokens is to be learned from."""
        return (made["reset"] != 0) | (made["kept"] == 0) if "kept" in made else made["reset"] != 0

    def _choose(self, p: Pass, given: Tensors, made: Tensors, nll: torch.Tensor) -> torch.Tensor:
        """Factors [N] on the weights of a pass's scores; streams none of whose tokens is learned from don't move."""
        recents = [self.states[stream].recent for stream in p.streams]
        factors, kept = chosen(self.settings.learn_from, recents, nll, p.counts, given["weights"], self.settings.shared)
        made["kept"].copy_(torch.tensor(kept))
        still = made["kept"] == 0
        given["moving"].masked_fill_(still if len(given["moving"]) == len(kept) else still.all().view(1), -1)
        return factors

    def _watch(self, changes: ChangePoints, p: Pass, given: Tensors, made: Tensors) -> None:
        counts, slots = given["counts"], given["slots"]
        if not self.asks:
            self.decoder.ops.decide("detect_changes", made["nll"], counts, slots, changes.table, given["moving"], made["reset"])
            return
        means = torch.stack([row.mean() for row in made["nll"].split(p.counts)]).double()
        flagged = changes.observe(slots.long(), means, counts > 0)
        made["reset"].copy_(flagged)
        given["moving"].masked_fill_(flagged, -1)

    def _learn(self, kind: Kind, batch: Batch, dhidden, learner, given: Tensors, made: Tensors) -> None:
        backward = partial(self.decoder.backward, batch, learner, self.lowest(batch.streams), dhidden, kind.adds)
        self.fresh &= not (kind.choosing or kind.update and self.fused)  # a backward that moves more than gradients
        lr = self._rates(self.lr, batch.streams[0])
        if not kind.update:
            backward()
            return
        if self.fused:
            self._backward_that_updates(backward, learner, lr, given, made)
            self._tally(given["moving"], made, learner.state.step)
        else:
            backward()
            self._move(learner, lr, given["moving"], made, batch.streams)
            self._tally(given["moving"], made)

    def _rates(self, lr: torch.Tensor, stream: int) -> torch.Tensor:
        """The learning rates of what a stream's learner holds, of all sets' ``lr``."""
        return lr[stream : stream + 1] if self.settings.apart and not self.settings.shared else lr

    def _move(self, learner, lr: torch.Tensor, moving: torch.Tensor, made: Tensors, streams: Sequence[int]) -> None:
        if self.keeping is not None:
            slots = [slot for slot in moving.tolist() if slot >= 0]
            self.keeping.add(learner, slots, slots if self.own_slots else streams[:1])
        self.fresh = False
        learner.update(self.decoder.ops, moving, lr, made["norms"], made["skipped"])

    def _tally(self, moving: torch.Tensor, made: Tensors, step: torch.Tensor | None = None) -> None:
        """``made`` says who moved; ``step``: updates of each slot, where they are still to be counted."""
        self.decoder.ops.decide("count_updates", moving, made["skipped"], self.counters, made["moving"], step)

    def _backward_that_updates(self, backward, learner, lr, given: Tensors, made: Tensors) -> None:
        """Gradient kernels update; a stream whose score is not finite is left out of it."""
        moving = given["moving"]
        admitted = self.decoder.ws("admitted", len(moving), dtype=torch.int32)
        self.decoder.ops.decide("admit_updates", made["nll"], moving, admitted, made["skipped"])
        learner.fused = Fused(admitted, learner.state.optimizer.rule(), lr, made["skipped"])
        try:
            backward()
        finally:
            learner.fused = None

    # ---- gradient and update as calls of their own

    def waits(self, p: Pass) -> bool:
        """Whether a gradient of the weights that a pass has waits for its update."""
        return any(state.waiting for state in (self.states if self.settings.shared else [self.states[s] for s in p.streams]))

    def hold(self, p: Pass) -> None:
        """Before a pass whose gradient will wait: there is room for it, and nothing old in the room."""
        adds = self.own_slots and self.waits(p)  # else it is not added to what is there
        for stream in p.streams:
            state = self.learner(stream).state
            state.keep_grad = True  # not so where the gradient kernels update
            gradients = state.take_gradients()
            if adds and not self.states[stream].waiting:
                gradients[self.slot(stream)].zero_()

    def update(self, p: Pass, lr: torch.Tensor) -> Tensors:
        """One update of a pass's streams by the gradients that wait; what it has made."""
        learner, device = self.together(p), self.settings.device
        slots = list(p.streams) if self.own_slots else [0]
        moving = torch.tensor(slots, dtype=torch.int32, device=device)
        rest = {name: torch.zeros(len(p.streams), dtype=torch.int32, device=device) for name in ("reset", "invalid")}
        made = {"norms": torch.zeros(len(slots), device=device), "skipped": torch.zeros_like(moving), "moving": moving, **rest}
        self.moving()
        self._move(learner, self._rates(lr, p.streams[0]), moving, made, p.streams)
        self._tally(moving, made)
        self._count_update(p.streams if self.own_slots else p.streams[:1])
        for stream in p.streams:
            self.drop_gradient(stream)
        return made

    # ---- the host's part

    def move_on(self, kind: Kind, p: Pass, made: Tensors, tokens: torch.Tensor, memory_lengths: list[int]) -> None:
        """Ledger, counters and the streams' positions behind a pass, and the resets that the host knows of.

        An update that a recorded step left out, of a stream that its change detector stopped, counts among the FLOPs: the host does not
        wait to hear of it.

        ``memory_lengths``: of each row's memory before the pass.
        """
        d, settings, memory = self.decoder, self.settings, self.decoder.memory
        count_memory(d, kind.width, memory_lengths)
        flagged = [s for s, flag in zip(p.streams, made["reset"].tolist()) if flag] if self.asks and self.changes is not None else []
        still = self._resting(made) if kind.backward else []
        if kind.backward and not all(still):
            self._count_learning(kind, p, still)
        if settings.learn_from is not None:
            for stream, mean in zip(p.streams, means_of(made["nll"], p.counts)):
                self.states[stream].recent = remembered(self.states[stream].recent, mean)
        for row, stream, n in zip(p.rows, p.streams, p.counts):
            if n:
                state = self.states[stream]
                state.segments += 1
                if settings.learns and isinstance(settings.reset, int):
                    state.since_reset += n
                if settings.context:
                    state.history = settings.memory.after(state.history, tokens[row, :n].tolist())
                if memory is not None and not self.asks:
                    memory.count(stream, n)
        for stream in (*p.resets, *flagged):
            self.put_back(stream)

    def _count_learning(self, kind: Kind, p: Pass, still: list[bool]) -> None:
        learner, settings = self.learner(p.streams[0]), self.settings
        keeps = settings.accumulate or p.apart
        if settings.owns_weights:
            learner.passes += keeps
        if kind.update:
            moved = [s for moves, s, rests in zip(p.moves, p.streams, still) if moves and not rests]
            self._count_update(moved if self.own_slots else p.streams[:1])
        for stream, moves, share in zip(p.streams, p.moves, p.shares):
            if kind.update and moves:
                self.drop_gradient(stream)
            elif share and keeps:
                self.states[stream].waiting = True

    def _count_update(self, streams: Sequence[int]) -> None:
        """The weights of ``streams`` have moved."""
        for stream in streams:
            learner = self.learner(stream)
            if self.settings.owns_weights:
                learner.count_update()
            state = learner.state
            flops = update_op.flops(state.updated, state.optimizer.rule(), learner.layout.parts, state.rate_factor is not None)
            if state.moving_rates is not None:
                flops += hypergradient.flops(state.updated)
            self.decoder.ledger.add("update", flops)
