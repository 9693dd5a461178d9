"""A guarded step: the prior beside the adapted model, and what they score mixed (adapt/guard.py, adapt/mixture.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dynadapt.adapt.guard import Guard
from dynadapt.adapt.mixture import Mixture

from .buffers import StepCall
from .prior import Prior
from .report import StepReport

Tensors = dict[str, torch.Tensor]


class Looks:
    """On which segments of each stream's document the prior is scored: decided by earlier scores alone."""

    def __init__(self, guard: Guard, mixture: Mixture, streams: int):
        self.every, self.mixture = guard.every, mixture
        self.since = [0] * streams  # segments since the last look, that one included; 0: look

    def of(self, streams: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """The lengths of the rows that are looked at, 0 of the others; counts their segments. Waits for the device with every > 1."""
        leads = [False] * len(self.since)
        if self.every > 1:
            leads = (self.mixture.log_weights[:, 0] > math.log(0.5)).tolist()
        seen = [n if self.since[s] == 0 or leads[s] else 0 for s, n in zip(streams, lengths)]
        for stream, n, look in zip(streams, lengths, seen):
            if n:
                self.since[stream] = (1 if look else self.since[stream] + 1) % self.every
        return seen


class Guarding:
    """What an engine with a guard has beside the others. Expert 0 is the prior, expert 1 what was adapted."""

    def __init__(self, engine, guard: Guard):
        self.prior = Prior(engine, engine.streams)
        self.mixture = Mixture(engine.streams, 2, guard.share, engine.device)
        self.looks = Looks(guard, self.mixture, engine.streams)

    def run(self, driver, call: StepCall, apart: bool) -> tuple[torch.Tensor, StepReport]:
        """(the mixture's scores [R, T], report) of one step of the engine's ``driver``; see ``Eager.run``."""
        streams, states = call.streams, driver.step.states
        histories = {s: states[s].history for s in streams} if driver.step.settings.context else {}
        adapted, report = driver.run(call, apart)
        lengths = self.looks.of(streams, call.lengths)
        mixed, static = adapted, torch.zeros_like(adapted)
        if any(lengths):
            static = self.prior.run(call, lengths, histories)
            mixed, counted = self.mixture.mix(streams, (static, adapted), lengths)
            mixed = torch.where(counted, mixed, adapted)
        for row, (n, look) in enumerate(zip(call.lengths, lengths)):
            if n and not look:
                static[row, :n] = math.nan  # not known
        report.nll_static, report.nll_adapted = static, adapted
        report.guard_bound = [self.mixture.bound(s) for s in streams]
        report.flops = dict(driver.step.decoder.ledger.step)
        return mixed, report

    def enter(self, stream: int) -> None:
        """A new document: both count the same again, and the prior remembers nothing."""
        self.mixture.enter(stream)
        self.looks.since[stream] = 0
        self.prior.enter(stream)

    # ---- saving

    def tensors(self) -> Tensors:
        """Everything that resuming exactly needs."""
        memory = {} if self.prior.memory is None else self.prior.memory.tensors()
        since = torch.tensor(self.looks.since, dtype=torch.int64)
        return {**self.mixture.tensors(), "since": since, **{f"memory.{name}": t for name, t in memory.items()}}

    def load(self, saved: Tensors) -> None:
        self.mixture.load(saved)
        self.looks.since = saved["since"].tolist()
        if self.prior.memory is not None:
            self.prior.memory.load({n.removeprefix("memory."): t for n, t in saved.items() if n.startswith("memory.")})

    def slot_copy(self, stream: int) -> Tensors:
        """Where one stream is."""
        memory = {} if self.prior.memory is None else self.prior.memory.slot_copy(stream)
        since = torch.tensor(self.looks.since[stream])
        return {**self.mixture.slot_copy(stream), "since": since, **{f"memory.{name}": t for name, t in memory.items()}}

    def slot_load(self, stream: int, saved: Tensors) -> None:
        """One stream is where ``slot_copy`` was taken."""
        self.mixture.slot_load(stream, saved)
        self.looks.since[stream] = int(saved["since"])
        if self.prior.memory is not None:
            self.prior.memory.slot_load(stream, {n.removeprefix("memory."): t for n, t in saved.items() if n.startswith("memory.")})


def made(engine) -> Guarding | None:
    """The guard of an engine that is made up to its driver; None where there is none."""
    return None if engine.settings.guard is None else Guarding(engine, engine.settings.guard)
