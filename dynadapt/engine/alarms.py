"""What follows from an alarm of a guarded stream (adapt/resets.py): to the prior, part of the way, or to the best of a ring of copies of what
the stream had learned; and a lower rate for a while.

The ring: behind every ``every``-th segment of a stream, unless it raised an alarm, what it has learned (weights and optimizer state) is copied
over the oldest of ``ring`` copies. At an alarm each copy scores the segment that raised it, from the memory and the position that the stream
began it with; the best of these and the prior is gone back to, with the memory that it has then. The copies stay: one taken of the wrong text
loses the next time as well. They are kept over documents, as weights are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from dynadapt.adapt.reset_policy import Alarm
from dynadapt.adapt.resets import Alarms

from .buffers import StepCall
from .losses import CROSS_ENTROPY
from .plan import LossWeights, StreamState
from .prior import Prior
from .report import StepReport
from .step import Step

Tensors = dict[str, torch.Tensor]
COPIED = ("master", "first", "second", "step", "last", "log_rate")  # of a slot; its gradient is gone by then


@dataclass(frozen=True)
class Before:
    """Where a stream was when a segment began, but for what it had learned."""

    state: StreamState
    memory: Tensors  # empty where there is none


class Returns:
    """The alarms of an engine's streams, and where they lead.

    Args:
        alarm: what raises one and what follows. step: the engine's. prior: which the guard scores.
    """

    def __init__(self, alarm: Alarm, step: Step, prior: Prior, device):
        streams = len(step.states)
        self.alarm, self.step, self.prior = alarm, step, prior
        self.alarms = Alarms(streams, device, alarm.nats)
        self.calm = [alarm.recover] * streams  # segments since the last alarm, which count up to ``recover``
        self.seen = [0] * streams  # segments, of which every ``every``-th is followed by a copy
        self.ring: list[Tensors] = []
        if alarm.ring:
            slots = [step.learner(s).state.slot(step.slot(s)) for s in range(streams)]
            self.ring = [{n: t.new_zeros(alarm.ring, *t.shape) for n, t in slot.items() if n in COPIED} for slot in slots]

    @property
    def table(self) -> torch.Tensor:
        """float64 [streams]: by how many nats each one's latest stretch was worse than the prior's."""
        return self.alarms.table

    def held(self, stream: int) -> int:
        """Copies in a stream's ring."""
        return min(self.seen[stream] // self.alarm.every, self.alarm.ring)

    # ---- around a pass

    def before(self, call: StepCall) -> dict[int, Before]:
        """Of the streams that may go back to a copy, what scoring a segment once more needs."""
        memory = self.step.decoder.memory
        scored = [s for s, n in zip(call.streams, call.lengths) if n and self.held(s)]
        return {s: Before(_copy(self.step.states[s]), {} if memory is None else memory.slot_copy(s)) for s in scored}

    @contextmanager
    def rates(self, call: StepCall) -> Iterator[None]:
        """Streams that have gone back a short while ago learn at a lower rate inside; ``engine.lr`` is what it was behind it."""
        slow = [s for s in call.streams if self.alarm.slower < 1 and self.calm[s] < self.alarm.recover]
        if not slow:
            yield
            return
        kept = self.step.lr.clone()
        self.step.lr[torch.tensor(slow, device=kept.device)] *= self.alarm.slower
        try:
            yield
        finally:
            self.step.lr.copy_(kept)

    def observe(self, driver, call: StepCall, before, static: torch.Tensor, adapted: torch.Tensor, report: StepReport) -> None:
        """Of one segment's scores [R, T], 0 where no token is: which streams go back, and there they go. Waits for the device."""
        for stream in self.alarms.observe(call.streams, static, adapted):
            row = call.streams.index(stream)
            report.read()["was_reset"][stream] = True
            partly = self.alarm.back < 1 and self.calm[stream] >= self.alarm.recover and bool(torch.isfinite(adapted[row]).all())
            if stream in before and self._to_copy(driver, call, row, before[stream], float(static[row].double().sum())):
                report.went_back[stream] = "copy"
            elif partly:
                report.went_back[stream] = "part of the way"
                self.step.put_back(stream, self.alarm.back)
            else:
                report.went_back[stream] = "prior"
                self._to_prior(stream)

    def count(self, call: StepCall, report: StepReport) -> None:
        """A segment of each row is over: behind it the streams that raised no alarm are calmer, and may be copied."""
        for stream, n in zip(call.streams, call.lengths):
            if not n:
                continue
            raised = stream in report.went_back
            self.calm[stream] = 0 if raised else min(self.calm[stream] + 1, self.alarm.recover)
            if not self.alarm.ring or raised:
                continue
            self.seen[stream] += 1
            if self.seen[stream] % self.alarm.every == 0:
                place, slot = (self.seen[stream] // self.alarm.every - 1) % self.alarm.ring, self._slot(stream)
                for name, copies in self.ring[stream].items():
                    copies[place] = slot[name]

    def _slot(self, stream: int) -> Tensors:
        return self.step.learner(stream).state.slot(self.step.slot(stream))

    def _to_prior(self, stream: int) -> None:
        """It goes on as the prior would: with its weights and, since what diverged is in the stream's, its memory."""
        self.step.put_back(stream)
        memory, prior = self.step.decoder.memory, self.prior.memory
        if memory is not None and prior is not None:
            memory.slot_load(stream, prior.slot_copy(stream))

    def _to_copy(self, driver, call: StepCall, row: int, began: Before, static: float) -> bool:
        """Whether a copy scores the segment better than the prior; then the stream is where the best one leaves it."""
        stream, memory = call.streams[row], self.step.decoder.memory
        again = StepCall(call.tokens[row : row + 1], [call.lengths[row]], [stream], LossWeights([0.0], [0]), CROSS_ENTROPY)
        behind, best, found = _copy(self.step.states[stream]), static, None
        for place in range(self.held(stream)):
            self._load(stream, place)
            self.step.states[stream] = replace(_copy(began.state), waiting=False)  # no gradient, no update
            if memory is not None:
                memory.slot_load(stream, began.memory)
            score = float(driver.run(again)[0].double().sum())
            if math.isfinite(score) and (score < best or not math.isfinite(best)):
                best, found = score, (place, {} if memory is None else memory.slot_copy(stream))
        self.step.states[stream] = behind
        if found is None:
            return False
        self._load(stream, found[0])
        if memory is not None:
            memory.slot_load(stream, found[1])
        return True

    def _load(self, stream: int, place: int) -> None:
        self.step.return_to(stream, {name: copies[place] for name, copies in self.ring[stream].items()})

    # ---- a new document, a reset

    def enter(self, stream: int) -> None:
        """A new document: its stretch begins anew; what is slower stays so, and the ring is kept."""
        self.alarms.forget(stream)

    def forget(self, stream: int) -> None:
        """A reset by call: there was no alarm, and nothing was learned."""
        self.alarms.forget(stream)
        self.calm[stream], self.seen[stream] = self.alarm.recover, 0
        for copies in self.ring[stream].values() if self.ring else ():
            copies.zero_()

    # ---- saving

    def tensors(self) -> Tensors:
        named = {"alarms": self.table}
        if self.alarm.remembers:
            named["alarm.calm"] = torch.tensor(self.calm, dtype=torch.int64)
        if self.ring:
            named["alarm.seen"] = torch.tensor(self.seen, dtype=torch.int64)
        return named | {f"alarm.ring.{s}.{name}": t for s, copies in enumerate(self.ring) for name, t in copies.items()}

    def load(self, saved: Tensors) -> None:
        self.table.copy_(saved["alarms"])
        if self.alarm.remembers:
            self.calm = saved["alarm.calm"].tolist()
        if self.ring:
            self.seen = saved["alarm.seen"].tolist()
        for s, copies in enumerate(self.ring):
            for name, t in copies.items():
                t.copy_(saved[f"alarm.ring.{s}.{name}"])

    def slot_copy(self, stream: int) -> Tensors:
        counts = torch.tensor([self.calm[stream], self.seen[stream]])
        copies = self.ring[stream] if self.ring else {}
        return {"alarms": self.table[stream].clone(), "alarm.counts": counts, **{f"ring.{name}": t.clone() for name, t in copies.items()}}

    def slot_load(self, stream: int, saved: Tensors) -> None:
        self.table[stream] = saved["alarms"]
        self.calm[stream], self.seen[stream] = saved["alarm.counts"].tolist()
        for name, t in self.ring[stream].items() if self.ring else ():
            t.copy_(saved[f"ring.{name}"])


def _copy(state: StreamState) -> StreamState:
    return replace(state, history=list(state.history))
