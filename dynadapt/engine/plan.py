"""What a step does, decided by the host before anything runs: which rows go through the layers together, who learns, who updates,
who goes back to the prior.

``plan`` reads the settings, the streams' counters and the call's lengths and weights. It looks at no score and at no tensor, and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .settings import NEVER

if TYPE_CHECKING:
    import torch


@dataclass
class StreamState:
    """What the host counts for one stream."""

    segments: int = 0  # since the stream's document entered
    since_reset: int = 0  # tokens learned from since the adapter was last the prior
    waiting: bool = False  # whether it has a gradient that no update has used yet
    history: list[int] = field(default_factory=list)  # Overlap: the last inputs
    recent: list[float] = field(default_factory=list)  # Selection: mean NLLs of the document's last segments


@dataclass(frozen=True)
class LossWeights:
    """What each token's NLL counts in the loss that is learned from: its row's factor times its own."""

    factors: Sequence[float]  # one a row of the call
    counted: Sequence[int]  # tokens of each row that its mean is over; 0: the row learns nothing
    tokens: torch.Tensor | None = None  # [R, T] on the host; None: 1 each


@dataclass(frozen=True)
class Pass:
    """Rows of a call that go through the layers together, and what becomes of them. Tuples hold one value a row."""

    rows: tuple[int, ...]  # of the call
    streams: tuple[int, ...]
    counts: tuple[int, ...]  # tokens that are scored; 0: the row rests
    due: tuple[bool, ...]  # whether its stream's update is
    resets: tuple[int, ...]  # streams that go back to the prior behind this segment
    shares: tuple[float, ...]  # what each token's NLL counts in the loss that is learned from, before its own weight
    backward: bool  # the loss gets a gradient, which goes back through the layers
    update: bool
    apart: bool = False  # the gradient waits for an update that is a call of its own

    @property
    def moves(self) -> tuple[bool, ...]:
        """Whose weights an update moves, as far as the host can know it."""
        return tuple(due and stream not in self.resets for due, stream in zip(self.due, self.streams))


def plan(
    settings,
    states: Sequence[StreamState],
    streams: Sequence[int],
    lengths: Sequence[int],
    weights: LossWeights | None = None,
    fixed: bool = False,
    apart: bool = False,
) -> list[Pass]:
    """The passes of one step.

    Args:
        settings: ``EngineSettings``.
        states: of all streams. streams, lengths, weights: one number a row of the call, as ``Engine.step`` takes them.
        fixed: passes have the shape of the call, so that rows rest in place and those whose update is due go with the others. Else a
            pass has active rows alone, in the order of their streams, and all or none of them are due: no row is padding only, and
            none pays for a backward that it has no use for.
        apart: every row's gradient is wanted, and no update is made (``Engine.forward_backward``).
    """
    weights = weights or LossWeights([1.0] * len(streams), lengths)
    due = _due(settings, states, streams, lengths, weights.counted, apart)
    of_rows = streams, lengths, due, weights.counted, weights.factors
    return [
        _pass(settings, states, apart, rows, *([values[r] for r in rows] for values in of_rows))
        for rows in _groups(settings, streams, lengths, due, fixed)
    ]


def plan_update(settings, streams: Sequence[int]) -> list[Pass]:
    """One update of ``streams`` by the gradients that wait, as passes through no layer: of all, or one by one where streams have weights
    of their own."""
    together = 1 if settings.apart and not settings.shared else len(streams)
    groups = [tuple(streams[i : i + together]) for i in range(0, len(streams), together)]
    still = lambda value, g: (value,) * len(g)  # noqa: E731
    return [Pass(tuple(range(len(g))), g, still(0, g), still(True, g), (), still(0.0, g), backward=False, update=True) for g in groups]


def _due(settings, states, streams, lengths, counted, apart: bool) -> list[bool]:
    """Whose update, or with ``apart`` gradient, is due: every k-th segment of a stream, unless nothing was learned since the last. Where
    weights are shared, all rows' at once, when the first stream's is."""
    due = [settings.learns and n > 0 and (apart or (states[s].segments + 1) % settings.every == 0) for s, n in zip(streams, lengths)]
    waits = [not apart and state.waiting for state in states]
    if settings.shared and any(lengths):
        first = min((s, i) for i, (s, n) in enumerate(zip(streams, lengths)) if n > 0)[1]
        return [due[first] and (any(counted) or any(waits)) and n > 0 for n in lengths]
    return [d and (count > 0 or waits[s]) for d, count, s in zip(due, counted, streams)]


def _groups(settings, streams, lengths, due, fixed: bool) -> list[list[int]]:
    """Rows that go together: ``batch`` at most, and one by one where streams have weights of their own."""
    together = 1 if settings.apart and not settings.shared else settings.batch or settings.streams
    pieces = lambda rows: [rows[i : i + together] for i in range(0, len(rows), together)]  # noqa: E731
    if fixed:
        return [rows for rows in pieces(list(range(len(streams)))) if any(lengths[row] for row in rows)]
    active = sorted((row for row, n in enumerate(lengths) if n > 0), key=lambda row: streams[row])
    return [part for wanted in (True, False) for part in pieces([row for row in active if due[row] == wanted])]


def _pass(settings, states, apart, rows, streams, counts, due, counted, factors) -> Pass:
    resets = []
    if settings.learns and isinstance(settings.reset, int):
        resets = [s for s, n in zip(streams, counts) if n > 0 and states[s].since_reset + n >= settings.reset]
    adds = settings.accumulate and settings.every != NEVER  # to an update that comes
    learning = [n > 0 and (d or adds) for d, n in zip(due, counted)]
    backward = settings.learns and any((learns or d) and s not in resets for learns, d, s in zip(learning, due, streams))
    total = sum(counted)
    shares = [1.0 / (total if settings.shared else n) * factor if learns else 0.0 for learns, n, factor in zip(learning, counted, factors)]
    update = backward and not apart and any(d and s not in resets for d, s in zip(due, streams))
    return Pass(tuple(rows), tuple(streams), tuple(counts), tuple(due), tuple(resets), tuple(shares), backward, update, apart)
