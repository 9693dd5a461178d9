"""A step whose scores are a mixture: of the prior and what was adapted (adapt/guard.py), or of learners of one text (rate_mixture.py).

Rows come in groups of ``learners``, which read the same text; a group's streams are neighbours. Its experts are the prior, where there is
a guard, and its learners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from dynadapt.adapt.guard import Guard
from dynadapt.adapt.mixture import Mixture

from .alarms import Returns
from .buffers import StepCall
from .losses import CROSS_ENTROPY
from .prior import Prior
from .report import StepReport

Tensors = dict[str, torch.Tensor]


class Looks:
    """On which segments of each text's document the prior is scored: decided by earlier scores alone."""

    def __init__(self, guard: Guard, mixture: Mixture, texts: int):
        self.every, self.mixture = guard.every, mixture
        self.since = [0] * texts  # segments since the last look, that one included; 0: look

    def of(self, texts: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """The lengths of the rows that are looked at, 0 of the others; counts their segments. Waits for the device with every > 1."""
        leads = [False] * len(self.since)
        if self.every > 1:
            leads = (self.mixture.log_weights[:, 0] > math.log(0.5)).tolist()
        seen = [n if self.since[s] == 0 or leads[s] else 0 for s, n in zip(texts, lengths)]
        for text, n, look in zip(texts, lengths, seen):
            if n:
                self.since[text] = (1 if look else self.since[text] + 1) % self.every
        return seen


class Halving:
    """Successive halving inside a document: after every ``every`` segments the half of a text's learners that scored worse since the document
    entered rests. None returns before the next document, which brings all back where it brings the weights back to the prior."""

    def __init__(self, every: int, texts: int, learners: int, returns: bool, device):
        self.every, self.returns = every, returns
        self.losses = torch.zeros(texts, learners, dtype=torch.float64, device=device)
        self.segments, self.alive = [0] * texts, [[True] * learners for _ in range(texts)]

    def count(self, texts: Sequence[int], adapted: torch.Tensor, lengths: Sequence[int]) -> None:
        """One segment's scores [R, K, T] of all learners. Waits for the device when a half is to be dropped."""
        self.losses[torch.tensor(texts, device=self.losses.device)] += adapted.double().sum(2)
        for text, n in zip(texts, lengths):
            self.segments[text] += n > 0
            running = [k for k, alive in enumerate(self.alive[text]) if alive]
            if n and self.segments[text] % self.every == 0 and len(running) > 1:
                totals = self.losses[text].nan_to_num(math.inf, math.inf, math.inf).tolist()
                kept = sorted(running, key=lambda k: totals[k])[: -(-len(running) // 2)]  # noqa: B023
                self.alive[text] = [k in kept for k in range(len(totals))]

    def enter(self, text: int) -> None:
        self.losses[text], self.segments[text] = 0.0, 0
        if self.returns:
            self.alive[text] = [True] * len(self.alive[text])

    def tensors(self) -> Tensors:
        whole = {"segments": self.segments, "alive": self.alive}
        return {"losses": self.losses.nan_to_num(1e300, 1e300), **{name: torch.tensor(n, dtype=torch.int64) for name, n in whole.items()}}

    def load(self, saved: Tensors) -> None:
        self.losses.copy_(saved["losses"])
        self.segments, self.alive = saved["segments"].tolist(), saved["alive"].bool().tolist()


class Guarding:
    """What mixes an engine's scores. Expert 0 is the prior where there is a guard; then come the learners.

    Args:
        guard: a ``Guard`` or None. learners: K streams of the engine that read each text, one after the other.
        halve: after how many segments half of them is dropped; None: never.
        described: what an engine's description has of it beside the engine's settings.
    """

    def __init__(self, engine, guard: Guard | None, learners: int = 1, halve: int | None = None, described: dict | None = None):
        self.learners, texts, self.described = learners, engine.streams // learners, described or {}
        self.prior = None if guard is None else Prior(engine, texts, _first_apart(engine, guard, halve))
        self.mixture = Mixture(texts, learners + (guard is not None), Guard.share if guard is None else guard.share, engine.device)
        self.looks = None if guard is None else Looks(guard, self.mixture, texts)
        alarm = engine.settings.alarm
        self.alarms = None if alarm is None or self.prior is None else Returns(alarm, engine.driver.step, self.prior, engine.device)
        self.halving = None if halve is None else Halving(halve, texts, learners, engine.reset_policy == "document", engine.device)

    def run(self, driver, call: StepCall, apart: bool) -> tuple[torch.Tensor, StepReport]:
        """(the mixture's scores [R, T], report) of one step of the engine's ``driver``, R texts; see ``Eager.run``.

        Raises:
            ValueError: rows that are not a text's learners side by side; nothing has changed.
        """
        k, context = self.learners, driver.step.settings.context
        if k > 1:
            self._check_groups(call)
        texts, lengths = [s // k for s in call.streams[::k]], call.lengths[::k]
        running = {text: 0 if self.halving is None else self.halving.alive[text].index(True) for text in texts}  # a learner of each
        histories = {text: driver.step.states[text * k + first].history for text, first in running.items()} if context else {}
        if self.halving is not None:
            alive = [flag for text in texts for flag in self.halving.alive[text]]
            call = replace(call, lengths=[n if flag else 0 for n, flag in zip(call.lengths, alive)])
        before = {} if self.alarms is None else self.alarms.before(call)
        with nullcontext() if self.alarms is None else self.alarms.rates(call):
            scores, report = driver.run(call, apart)
        adapted = scores.view(len(texts), k, -1)
        if self.halving is not None:
            self.halving.count(texts, adapted, lengths)
            resting = torch.tensor(alive, device=adapted.device).logical_not().view(len(texts), k, 1)
            adapted = adapted.masked_fill(resting, math.inf)
        looked = [0] * len(texts) if self.looks is None else self.looks.of(texts, lengths)
        static = None if self.prior is None else torch.zeros_like(adapted[:, 0])
        mixed, learned = torch.zeros_like(adapted[:, 0]), list(adapted.unbind(1))
        if self.prior is not None and any(looked):
            static = self.prior.run(StepCall(call.tokens[::k], looked, texts, None, CROSS_ENTROPY), histories)
            mixed, counted = self.mixture.mix(texts, [static, *learned], looked)
            if self.alarms is not None:
                prior, own = (torch.where(counted, scores, 0.0) for scores in (static, learned[0]))
                self.alarms.observe(driver, call, before, prior, own, report)
        if self.alarms is not None:
            self.alarms.count(call, report)
        unseen = [n - seen for n, seen in zip(lengths, looked)]
        if any(unseen):
            others, counted = self.mixture.mix(texts, learned, unseen, asleep=self.mixture.experts - k)
            mixed = torch.where(counted, learned[0] if k == 1 else others, mixed)
            if static is not None:
                static = torch.where(counted, math.nan, static)  # not known
        report.nll_static, report.nll_adapted = static, learned[0] if k == 1 else adapted
        report.guard_bound = [self.mixture.bound(text) for text in texts]
        report.flops = dict(driver.step.decoder.ledger.step)
        return mixed, report

    def _check_groups(self, call: StepCall) -> None:
        k, streams, lengths = self.learners, call.streams, call.lengths
        whole = [s // k * k + i for s in streams[::k] for i in range(k)] == streams and [
            n for n in lengths[::k] for _ in range(k)
        ] == lengths
        rows = call.tokens.reshape(-1, k, call.tokens.shape[1]) if whole and call.tokens.device.type == "cpu" else None
        if not whole or rows is not None and not bool((rows == rows[:, :1]).all()):
            raise ValueError(
                f"streams={streams}: {k} streams each are learners of one text, whose scores are mixed; expected all of a text's, with rows "
                "that are alike, as RateMixture.step gives them"
            )

    def enter(self, stream: int) -> None:
        """A new document: all experts count the same again, and the prior remembers nothing."""
        text = stream // self.learners
        self.mixture.enter(text)
        if self.alarms is not None:
            self.alarms.enter(text)
        if self.halving is not None:
            self.halving.enter(text)
        if self.looks is not None:
            self.looks.since[text] = 0
        if self.prior is not None and self.prior.memory is not None:
            self.prior.memory.clear(text)

    # ---- saving

    def tensors(self) -> Tensors:
        """Everything that resuming exactly needs."""
        named = dict(self.mixture.tensors())
        if self.looks is not None:
            named["since"] = torch.tensor(self.looks.since, dtype=torch.int64)
        if self.alarms is not None:
            named |= self.alarms.tensors()
        if self.halving is not None:
            named |= {f"halving.{name}": t for name, t in self.halving.tensors().items()}
        if self.prior is not None and self.prior.memory is not None:
            named |= {f"memory.{name}": t for name, t in self.prior.memory.tensors().items()}
        return named

    def load(self, saved: Tensors) -> None:
        self.mixture.load(saved)
        if self.looks is not None:
            self.looks.since = saved["since"].tolist()
        if self.alarms is not None:
            self.alarms.load(saved)
        if self.halving is not None:
            self.halving.load(_under("halving.", saved))
        if self.prior is not None and self.prior.memory is not None:
            self.prior.memory.load(_under("memory.", saved))

    def slot_copy(self, stream: int) -> Tensors:
        """Where one stream is.

        Raises:
            ValueError: its score is mixed with other streams'.
        """
        if self.learners > 1:
            raise ValueError(f"stream={stream}: it is one of {self.learners} learners whose scores are mixed; use save()")
        since = {} if self.looks is None else {"since": torch.tensor(self.looks.since[stream])}
        memory = {} if self.prior is None or self.prior.memory is None else self.prior.memory.slot_copy(stream)
        alarms = {} if self.alarms is None else self.alarms.slot_copy(stream)
        return {**self.mixture.slot_copy(stream), **since, **alarms, **{f"memory.{name}": t for name, t in memory.items()}}

    def slot_load(self, stream: int, saved: Tensors) -> None:
        """One stream is where ``slot_copy`` was taken."""
        self.mixture.slot_load(stream, saved)
        if self.alarms is not None:
            self.alarms.slot_load(stream, saved)
        if self.looks is not None:
            self.looks.since[stream] = int(saved["since"])
        if self.prior is not None and self.prior.memory is not None:
            self.prior.memory.slot_load(stream, _under("memory.", saved))


def _first_apart(engine, guard: Guard, halve: int | None) -> int:
    """The first layer in which the prior is other than what is adapted. 0 where the layers below can't be run once for both: on segments
    that are not looked at the prior remembers nothing, a learner that rests has nothing to hand over, and states of the gated delta rule are not
    handed over."""
    alike = guard.every == 1 and halve is None and engine.config.delta is None
    return max(0, engine.lowest[0]) if alike else 0


def _under(prefix: str, saved: Tensors) -> Tensors:
    return {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}


def made(engine) -> Guarding | None:
    """The guard of an engine that is made up to its driver; None where there is none."""
    return None if engine.settings.guard is None else Guarding(engine, engine.settings.guard)
