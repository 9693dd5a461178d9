"""Learners of one text at several learning rates, mixed, so that none has to be guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from dynadapt.adapt.guard import as_guard
from dynadapt.adapt.reset_policy import Alarm
from dynadapt.common.checks import integer, number, sequence, token_ids, wrong
from dynadapt.common.reprs import safe

from .engine import Engine
from .guarding import Guarding
from .report import StepReport
from .step_arguments import check_lengths, check_stream, check_streams


class RateMixture:
    """K learners of each text as K streams of one engine, which go through the layers together, and their scores mixed by fixed share
    (adapt/mixture.py), with the prior's where there is a guard.

    A text's score is above that of its best rate, whichever it was, by at most ln K + (n-1) ln(1/(1-share)) nats over a document of n
    tokens (K + 1 with a guard, and then above the prior's by no more either). What it costs is K learners' steps, less what ``halve`` saves.

    Args:
        model: as ``Engine``'s.
        rates: K >= 2 different learning rates.
        guard: as ``Engine``'s: the prior is one expert more, scored once for all learners of a text.
        halve: after every so many segments of a document the half of the learners that scored worse in it so far rests, until one is
            left; the bound is then against those that are still there. With reset="document" the next document has all again, else those
            that were left. None: all go on.
        streams: texts side by side. settings: of ``Engine``; ``shared`` is not for streams that learn by themselves.

    Raises:
        ValueError: naming the argument that does not fit; what ``Engine`` raises.
    """

    def __init__(self, model, rates, *, guard=None, halve: int | None = None, streams: int = 1, **settings):
        self.rates = check_rates(rates)
        self.guard = as_guard(guard)
        self.halve = None if halve is None else integer("halve", halve)
        if settings.get("shared"):
            raise ValueError("shared=True with rates: learners have weights of their own; expected False")
        if settings.get("slow") is not None:
            raise ValueError(f"slow={settings['slow']!r} with rates: learners of one text would feed it that text each; expected None")
        if isinstance(settings.get("reset"), Alarm):
            raise ValueError(f"reset={settings['reset']!r} with rates: each learner looks at its own score; expected 'auto'")
        self.texts, k = integer("streams", streams), len(self.rates)
        self.engine = Engine(model, streams=self.texts * k, **settings)
        if self.engine.adapt is None:
            raise ValueError(f"adapt=None with rates={self.rates!r}: nothing learns at any of them; give adapt, or no rates")
        mixture = {"rates": self.rates, "guard": None if self.guard is None else asdict(self.guard), "halve": self.halve}
        self.mixing = self.engine.guarding = Guarding(self.engine, self.guard, k, self.halve, {"mixture": mixture})
        for stream in range(self.engine.streams):
            self.engine.set_lr(stream, self.rates[stream % k])

    @safe
    def __repr__(self) -> str:
        return f"RateMixture({self.rates!r}, guard={self.guard!r}, halve={self.halve!r}, of {self.engine!r})"

    @property
    def last(self) -> StepReport | None:
        """What the last step did, by stream of the engine, K for each text; ``nll_adapted`` is [R, K, T], infinite where one rests."""
        return self.engine.last

    model = property(lambda self: self.engine.model)
    device = property(lambda self: self.engine.device)
    backend = property(lambda self: self.engine.backend)
    dtype = property(lambda self: self.engine.dtype)
    learned_parameters = property(lambda self: self.engine.learned_parameters, doc="Parameters that learn, per learner.")

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs by phase of all learners and the prior."""
        return self.engine.flops

    def weights(self, stream: int = 0) -> dict[str, float]:
        """What each expert counts in the text's next token, by rate, and with a guard "prior"; waits for the device."""
        names = ["prior"] * (self.guard is not None) + [f"{rate:.9g}" for rate in self.rates]
        return dict(zip(names, self.mixing.mixture.weights(check_stream(stream, self.texts)).tolist()))

    def explain(self, time: bool = False) -> str:
        """As ``Engine.explain``, of the one engine that all learn in."""
        return self.engine.explain(time)

    def enter(self, stream: int) -> None:
        """A new document of a text: as ``Engine.enter`` for each of its learners, and all experts count the same again."""
        first = check_stream(stream, self.texts) * len(self.rates)
        for learner in range(first, first + len(self.rates)):
            self.engine.enter(learner)

    def step(self, tokens: torch.Tensor, lengths=None, streams=None) -> torch.Tensor:
        """The mixture's scores [R, T] of texts [R, T+1], as ``Engine.step`` gives and takes them; then each learner learns."""
        k = len(self.rates)
        streams = check_streams(streams, self.texts)
        tokens = token_ids("tokens", tokens)
        if tokens.dim() != 2 or len(tokens) != len(streams):
            raise wrong("tokens", tokens, f"token ids [{len(streams)}, T+1], a row for each text")
        lengths = check_lengths(lengths, len(streams), tokens.shape[1] - 1)
        each = lambda values: [value for value in values for _ in range(k)]  # noqa: E731
        own = [stream * k + learner for stream in streams for learner in range(k)]
        return self.engine.step(tokens.repeat_interleave(k, 0), each(lengths), own)

    def gather_statistics(self, segments) -> int:
        """As ``Engine.gather_statistics``."""
        return self.engine.gather_statistics(segments)

    def save(self, directory) -> None:
        """As ``Engine.save``."""
        self.engine.save(directory)

    def restore(self, directory) -> None:
        """As ``Engine.restore``, in a mixture of the same rates, guard and ``halve``."""
        self.engine.restore(directory)


def check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Two or more different finite learning rates of at least 0."""
    expected = "two or more different learning rates, such as [5e-4, 2e-3, 8e-3]"
    values = tuple(float(number("rates", rate, expected)) for rate in sequence("rates", rates, expected))
    if len(values) < 2 or len(set(values)) < len(values):
        raise wrong("rates", rates, expected)
    return values
