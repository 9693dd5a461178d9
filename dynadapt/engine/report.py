"""What a step did, by stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dynadapt.common.reprs import counted, safe

from .on_the_way import OnTheWay
from .plan import Pass


@dataclass(frozen=True)
class Outcome:
    """One pass as it left the device: ``made`` has what buffers.py says, but for the scores."""

    plan: Pass
    made: dict[str, torch.Tensor]
    has_norms: bool  # False where the gradient kernels updated: no gradient was ever whole


class StepReport:
    """What the last step did, by stream. ``flops``: phase -> FLOPs of this step. ``loss``: of ``forward_backward`` with loss="kl" each
    token's [R, T] in the rows that learn, on the engine's device; else None.

    With a guard, of the step's rows: ``nll_static`` [R, T], the prior's scores, NaN where it was not looked at; ``nll_adapted``, what
    the step would have returned without; and ``guard_bound``, by how many nats the score of each row's document, as far as it was
    looked at, can be above the better of the two (adapt/guard.py). ``went_back``: where an alarm led, by stream: "prior", "part of the
    way" or "copy"; empty without one. ``learned_tokens``: with ``learn_from``, of how many tokens each stream learned in this step; None where no
    rule chose.

    The report of a step that may still run (``pending``) is read when a field other than ``flops`` is first asked for, which waits.
    """

    nll_static: torch.Tensor | None = None
    nll_adapted: torch.Tensor | None = None
    guard_bound: list[float] | None = None
    went_back: dict[int, str]
    _coming: OnTheWay | None = None

    def __init__(
        self,
        updated: list[bool],
        skipped: list[bool],
        was_reset: list[bool],
        grad_norm: list[float | None],
        flops: dict[str, int] | None = None,
    ):
        self.streams, self.flops, self.loss, self.went_back = len(updated), flops or {}, None, {}
        self.outcomes: list[Outcome] = []
        self.known: dict[str, list] | None = {"updated": updated, "skipped": skipped, "was_reset": was_reset, "grad_norm": grad_norm}
        self.known["learned_tokens"] = [None] * self.streams

    @classmethod
    def pending(cls, streams: int, outcomes: list[Outcome], flops: dict[str, int], loss: torch.Tensor | None = None) -> StepReport:
        report = cls.__new__(cls)
        report.streams, report.flops, report.loss, report.outcomes, report.known = streams, flops, loss, outcomes, None
        report.went_back = {}
        return report

    def read(self) -> dict[str, list]:
        """All fields but ``flops``.

        Raises:
            ValueError: naming the streams whose tokens, which were on the device, hold ids outside the vocabulary.
        """
        if self.known is None:
            arrive(self)
            self.known, self.outcomes = self._collect(), []
        return self.known

    def _collect(self) -> dict[str, list]:
        known: dict[str, list] = {name: [False] * self.streams for name in ("updated", "skipped", "was_reset")}
        known["grad_norm"], known["learned_tokens"] = [None] * self.streams, [None] * self.streams
        for outcome in self.outcomes:
            streams, host = outcome.plan.streams, {name: t.tolist() for name, t in outcome.made.items()}
            if any(host["invalid"]):
                raise ValueError(
                    f"tokens of streams {[s for s, bad in zip(streams, host['invalid']) if bad]} hold ids outside the "
                    "vocabulary; their scores are NaN and they did not learn"
                )
            for i, stream in enumerate(streams):
                j = i if len(host["moving"]) > 1 else 0
                known["was_reset"][stream] = stream in outcome.plan.resets or bool(host["reset"][i])
                if "kept" in host:
                    known["learned_tokens"][stream] = host["kept"][i]
                if outcome.plan.update and outcome.plan.due[i] and host["moving"][j] >= 0:
                    known["skipped"][stream] = bool(host["skipped"][j])
                    known["updated"][stream] = not host["skipped"][j]
                    known["grad_norm"][stream] = host["norms"][j] if outcome.has_norms else None
        return known

    updated = property(lambda self: self.read()["updated"])
    skipped = property(lambda self: self.read()["skipped"])
    was_reset = property(lambda self: self.read()["was_reset"])
    grad_norm = property(lambda self: self.read()["grad_norm"])
    learned_tokens = property(lambda self: self.read()["learned_tokens"])

    @safe
    def __repr__(self) -> str:
        streams, work = counted(self.streams, "stream"), f"{sum(self.flops.values()) / 1e9:.4g} GFLOP)"
        if self.known is None:  # asking would wait for the device
            return f"StepReport({streams}, not read from the device, {work}"
        norms = [norm for norm in self.grad_norm if norm is not None]
        what = [f"{sum(map(bool, flags))} {name}" for name, flags in (("skipped", self.skipped), ("reset", self.was_reset)) if any(flags)]
        if norms:
            what.append(f"gradient norm {min(norms):.3g}" + (f"..{max(norms):.3g}" if len(norms) > 1 else ""))
        return ", ".join([f"StepReport({sum(map(bool, self.updated))} of {streams} updated", *what, work])


def send(report: StepReport) -> None:
    """Sends all of a report that is on the device to the host, so that reading it later waits for its step and not for those behind it."""
    scores = {"nll_static": report.nll_static, "nll_adapted": report.nll_adapted}
    made = {f"{i} {name}": t for i, outcome in enumerate(report.outcomes) for name, t in outcome.made.items()}
    report._coming = OnTheWay({name: t for name, t in scores.items() if t is not None} | made)


def arrive(report: StepReport) -> None:
    """Waits for what ``send`` sent, if it did; all fields but ``loss`` are the host's then."""
    if report._coming is None:
        return
    host, report._coming = report._coming.wait(), None
    report.nll_static, report.nll_adapted = host.get("nll_static"), host.get("nll_adapted")
    report.outcomes = [replace(o, made={name: host[f"{i} {name}"] for name in o.made}) for i, o in enumerate(report.outcomes)]
