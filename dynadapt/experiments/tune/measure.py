"""Candidates run over windows, one loaded model for all of them.

Candidates that learn carry what they learned from window to window. Those that differ in the rate only go side by side as streams of one
engine, each with weights and a rate of its own, and score what each would score alone; with an exact guard the prior is scored once for all
of them (side_by_side.py). Windows of a static candidate go side by side too. Both are done where a timed segment shows that it is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.dyneval import build_engine

from .plan import Candidate, Cost
from .side_by_side import GuardedRates
from .windows import Piece, Window

SIDE_BY_SIDE = {"none": 4, "lora": 3}  # streams that are timed; weights of one's own go through the layers one by one
FASTER = 1.05  # a batch must be so much faster, or streams go one by one


@dataclass
class Scored:
    """What one candidate scored. nll: mean of each window, nats per token."""

    nll: list[float] = field(default_factory=list)
    counted: int = 0
    tokens: int = 0  # learned from, counted or not
    seconds: float = 0.0  # of the steps; candidates side by side share them
    setup: float = 0.0
    flops: int = 0  # shared, too


class Bench:
    """Runs candidates. beat() is called after every step. wide: streams of a kind that may go side by side."""

    def __init__(self, model, config: EvalConfig, beat: Callable[[], None] = lambda: None, wide: dict[str, int] | None = None):
        self.model, self.config, self.beat, self.wide = model, config, beat, {**SIDE_BY_SIDE, **(wide or {})}
        self.streams = {"none": 1, "lora": 1}  # side by side, where that was faster
        self.alone: dict[str, float] = {}  # seconds a segment, by kind: one stream, and the way that is faster
        self.faster: dict[str, float] = {}
        self.dtype = self.device = self.backend = self._last = None

    def engine(self, candidate: Candidate, streams: int = 1):
        """One that has learned nothing: the last one, put back, where only the rate differs, else a new one in its place."""
        key = (candidate.adapt, candidate.memory, streams)
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = key, self._build(candidate, streams)
        engine = self._last[1]
        self.dtype, self.device, self.backend = engine.dtype, str(engine.device), engine.backend
        if candidate.adapt != "none":
            for stream in range(streams):
                engine.reset(stream)
        return engine

    def _build(self, candidate: Candidate, streams: int):
        config = candidate.configure(self.config)
        if self._shares_prior(candidate, streams):
            some = ",".join(f"{rate!r}" for rate in np.arange(1.0, streams + 1).tolist())  # any: each candidate sets its own
            return GuardedRates(build_engine(self.model, config.with_(rates=some)))
        return build_engine(self.model, config.with_(streams=streams))

    def _shares_prior(self, candidate: Candidate, streams: int) -> bool:
        """Whether so many streams are learners of one text beside one prior. With a guard on every N-th segment each is looked at on its own."""
        return streams > 1 and candidate.configure(self.config).guard == "exact"

    def time(self, candidate: Candidate, ids: np.ndarray, seconds: float = float("inf")) -> Cost:
        """Times a segment of a kind, alone and, unless that would take more than `seconds`, side by side; ids [>= 2]: any tokens."""
        kind, wide = candidate.adapt, self.wide.get(candidate.adapt, 1)
        started = time.perf_counter()
        engine = self.engine(candidate, wide)
        together = engine.device.type != "cpu" or self._shares_prior(candidate, wide)  # rows that rest cost as much, or none rests alone
        self._step(engine, ids, wide if together else 1)  # packs weights, makes workspaces, records graphs
        setup = time.perf_counter() - started
        if wide > 1 and together:
            batched = self._step(engine, ids, wide) / wide
            engine = self.engine(candidate, 1)
            self._step(engine, ids, 1)
            alone = self._step(engine, ids, 1)
        else:
            alone = self._step(engine, ids, 1)
            batched = self._step(engine, ids, wide) / wide if wide > 1 and wide * alone < seconds else alone
        self.alone[kind] = self.faster[kind] = alone
        if batched * FASTER < alone:
            self.streams[kind], self.faster[kind] = wide, batched
        return Cost(setup, self.faster[kind])

    def _step(self, engine, ids: np.ndarray, rows: int) -> float:
        """Seconds of a step in which so many streams take part."""
        tokens = torch.from_numpy(np.repeat(np.resize(ids, self.config.segment + 1)[None], engine.streams, 0))
        lengths = [self.config.segment] * rows + [0] * (engine.streams - rows)
        started = time.perf_counter()
        _fetch(engine.step(tokens, lengths))
        seconds = time.perf_counter() - started
        self.beat()
        return seconds

    def static(
        self, candidate: Candidate, windows: list[Window], streams: int | None = None, deadline: float = float("inf"), least: int = 0
    ) -> Scored:
        """Scores the windows; nothing carries over, so their pieces may go side by side. Stops between pieces at the deadline,
        but not before `least` windows are whole."""
        streams = streams or self.streams["none"]
        started, scored = time.perf_counter(), Scored()
        engine = self.engine(candidate, streams)
        between, flops = time.perf_counter(), sum(engine.flops.values())
        scored.setup = between - started
        pieces, found = [piece for window in windows for piece in window.pieces], []
        for at in range(0, len(pieces), streams):
            if time.monotonic() > deadline and at >= sum(len(window.pieces) for window in windows[:least]):
                break
            found += self._pieces(engine, pieces[at : at + streams], streams)
        _add_up(scored, windows, found)
        scored.seconds, scored.flops = time.perf_counter() - between, sum(engine.flops.values()) - flops
        return scored

    def learning(
        self, candidates: list[Candidate], windows: list[Window], deadline: float = float("inf"), least: int = 0
    ) -> dict[Candidate, Scored]:
        """Candidates that differ in the rate only, over the windows in order. Stops between windows at the deadline, but not
        before `least` of them."""
        wide = self.streams.get(candidates[0].adapt, 1)
        found = {}
        for at in range(0, len(candidates), wide):
            found.update(self._learning(candidates[at : at + wide], windows, deadline, least))
        return found

    def _learning(self, candidates, windows, deadline, least) -> dict[Candidate, Scored]:
        started = time.perf_counter()
        engine = self.engine(candidates[0], len(candidates))
        for stream, candidate in enumerate(candidates):
            engine.set_lr(stream, candidate.lr)
        between, flops, found = time.perf_counter(), sum(engine.flops.values()), [[] for _ in candidates]
        for number, window in enumerate(windows):
            if time.monotonic() > deadline and number >= least:
                break
            for piece in window.pieces:
                for scores, sums in zip(found, self._pieces(engine, [piece] * len(candidates), len(candidates))):
                    scores.append(sums)
        seconds, result = time.perf_counter() - between, {}
        for candidate, scores in zip(candidates, found):
            scored = Scored(
                setup=(between - started) / len(candidates),
                seconds=seconds / len(candidates),
                flops=(sum(engine.flops.values()) - flops) // len(candidates),
            )
            _add_up(scored, windows, scores)
            result[candidate] = scored
        return result

    def _pieces(self, engine, pieces: list[Piece], streams: int) -> list[float]:
        """The sum of the counted NLLs of each piece, each in a stream of its own."""
        segment = self.config.segment
        for stream in range(len(pieces)):
            engine.enter(stream)
        sums = [0.0] * len(pieces)
        for at in range(0, max(len(piece.sizes) for piece in pieces), segment):
            tokens, lengths = np.zeros((streams, segment + 1), np.int64), np.zeros(streams, np.int64)
            for stream, piece in enumerate(pieces):
                row = piece.ids[at : at + segment + 1]
                lengths[stream] = max(len(row) - 1, 0)
                tokens[stream, : len(row)] = row
            nll = _fetch(engine.step(torch.from_numpy(tokens), torch.from_numpy(lengths)))
            for stream, piece in enumerate(pieces):
                counted = nll[stream, max(piece.skip - at, 0) : lengths[stream]] if piece.skip < at + lengths[stream] else nll[stream, :0]
                sums[stream] += float(counted.sum())
            self.beat()
        return sums


def _fetch(nll: torch.Tensor) -> np.ndarray:
    return nll.detach().double().cpu().numpy()


def _add_up(scored: Scored, windows: list[Window], sums: list[float]) -> None:
    """Sums of pieces to means of the windows that are whole."""
    at = 0
    for window in windows:
        if at + len(window.pieces) > len(sums):
            break
        total = sum(sums[at : at + len(window.pieces)])
        scored.nll.append(total / window.counted)
        scored.counted += window.counted
        scored.tokens += window.learned
        at += len(window.pieces)
