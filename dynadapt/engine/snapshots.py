"""Where a stream is, as a copy in memory: ``Engine.snapshot`` and ``Engine.rollback``.

A snapshot has all that the stream's next steps depend on: what it learned with the optimizer's state, gradients that were added up,
its learning rate, its memory or history, the segments and tokens that it counts, its change detector. Where all rows share one set
of weights they are one whole, and a snapshot has every row's memory and counts. What the engine counts over all streams (``updates``,
``skipped_updates``, ``flops``) is work that was done, and is not taken back.

Going back copies into the tensors that are there, whose addresses recorded passes hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from dynadapt.common.checks import wrong
from dynadapt.common.reprs import safe

from .plan import StreamState

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class StreamSnapshot:
    """Where a stream was, as ``Engine.snapshot`` gives it; later steps leave it alone, and it can be gone back to any number of times.

    Args:
        settings: of the stream that it is of, as ``EngineSettings.describe`` gives them. model: that engine's.
        lr: float32 []. learned: a set's weights and optimizer state; empty where nothing learns.
        states, memories, changes, guards: of each row: one, or all where they share a set of weights. ``memories`` hold what is filled alone.
    """

    settings: dict
    model: Any
    lr: torch.Tensor
    learned: Tensors
    states: list[StreamState]
    memories: list[Tensors]
    changes: list[Tensors]
    guards: list[Tensors]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        held = (self.lr, *(t for part in (self.learned, *self.memories, *self.changes, *self.guards) for t in part.values()))
        return sum(t.numel() * t.element_size() for t in held)

    @safe
    def __repr__(self) -> str:
        rows = "" if len(self.states) == 1 else f"{len(self.states)} rows, "
        return f"StreamSnapshot({rows}{max(s.segments for s in self.states)} segments into the document, {self.nbytes / 1e6:,.1f} MB)"


def take(engine, stream: int) -> StreamSnapshot:
    """A copy of where ``stream`` is. See ``Engine.snapshot``."""
    if engine.slow is not None:
        raise ValueError(f"snapshot with slow={engine.slow!r}: the slow level is of all streams and can't go back with one; use save()")
    step, memory, rows = engine.driver.step, engine.decoder.memory, _rows(engine, stream)
    learner = step.learner(stream)
    if learner is not None and learner.state.sharded:
        raise ValueError(f"stream={stream}: what it learned is sharded over processes, and no process has it whole; use save()")
    states = [replace(engine.state[s], history=list(engine.state[s].history)) for s in rows]
    memories = [{} if memory is None else memory.slot_copy(s) for s in rows]
    changes = [{} if step.changes is None else {"table": step.changes.table[:, s].clone()} for s in rows]
    guards = [{} if engine.guarding is None else engine.guarding.slot_copy(s) for s in rows]
    learned = {} if learner is None else learner.slot_copy(step.slot(stream))
    return StreamSnapshot(
        engine.settings.describe(stream), engine.model, engine.lr[_set(engine, stream)].clone(), learned, states, memories, changes, guards
    )


def put(engine, stream: int, snapshot) -> None:
    """``stream`` is where ``snapshot`` was taken. See ``Engine.rollback``.

    Raises:
        ValueError: before anything changes, for a snapshot of an engine of another configuration.
    """
    check(engine, stream, snapshot)
    step, memory = engine.driver.step, engine.decoder.memory
    learner, bound = step.learner(stream), None
    engine.calls.moving()
    engine.lr[_set(engine, stream)] = snapshot.lr
    if learner is not None:
        bound = learner.state.prior
        learner.slot_load(step.slot(stream), snapshot.learned)
    for i, s in enumerate(_rows(engine, stream)):
        engine.state[s] = replace(snapshot.states[i], history=list(snapshot.states[i].history))
        if memory is not None:
            memory.slot_load(s, snapshot.memories[i])
        if step.changes is not None:
            step.changes.table[:, s] = snapshot.changes[i]["table"]
        if engine.guarding is not None:
            engine.guarding.slot_load(s, snapshot.guards[i])
    step.fresh = False
    if learner is not None and learner.state.prior is not bound:
        engine.driver.drop_recordings()


def check(engine, stream: int, snapshot, name: str = "snapshot") -> None:
    """Raises ValueError where ``stream`` can't be where ``snapshot``, the argument ``name``, was taken."""
    if not isinstance(snapshot, StreamSnapshot):
        raise wrong(name, snapshot, "what Engine.snapshot gave")
    here = engine.settings.describe(stream)
    for setting in here | snapshot.settings:
        value = snapshot.settings.get(setting)
        if here.get(setting) != value and (setting != "streams" or engine.shared):  # a stream does not know how many others there are
            raise ValueError(f"{name}: taken in an engine with {setting}={value!r}; this one has {here.get(setting)!r}")
    if snapshot.model is not engine.model and snapshot.model.fingerprint() != engine.model.fingerprint():
        raise ValueError(f"{name}: taken in an engine of another model ({snapshot.model.name!r}); this one has {engine.model.name!r}")
    learner = engine.driver.step.learner(stream)
    if learner is not None and ("stat" in snapshot.learned) != (learner.state.stat is not None):
        when = "before" if learner.state.stat is not None else "after"
        raise ValueError(f"{name}: taken {when} gradient statistics were gathered, which belong to what it learned")


def _set(engine, stream: int) -> int:
    """Which set of weights is the stream's."""
    return 0 if engine.shared else stream


def _rows(engine, stream: int) -> range:
    """The streams that have one set of weights with this one."""
    return range(engine.streams) if engine.shared else range(stream, stream + 1)
