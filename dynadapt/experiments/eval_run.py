"""An evaluation between its checkpoints: segments in, scores and metrics out, one step late where a device works ahead."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dynadapt.common.notes import note
from dynadapt.engine.on_the_way import OnTheWay
from dynadapt.engine.report import StepReport, send
from dynadapt.runs.document_streams import Feed, Segment, check_lengths
from dynadapt.runs.rundir import SCORE, RunError
from dynadapt.runs.stopping import interruptible
from dynadapt.runs.text import Document, Source, TextError, split

from . import eval_totals


@dataclass(frozen=True)
class _Scored:
    """A segment whose step was launched: its scores [S, T], what the step did, the feed's state and share of the text behind it,
    and where a prior is kept each stream's divergence from it."""

    segment: Segment
    nll: OnTheWay
    report: StepReport
    position: dict
    fraction: float | None
    divergence: dict[int, float] | None = None


class EvalRun:
    """One run between its checkpoints: the engine, the feed and the totals."""

    def __init__(self, config, options, directory, engine, sources, facts, tokenizer, begin):
        self.config, self.options, self.directory, self.engine = config, options, directory, engine
        self.late = engine.device.type != "cpu"  # a step returns before its work is done
        sizes = [fact.get("bytes") for fact in facts]
        self.size, self.baseline = sum(sizes) if all(sizes) else None, {}
        saved = directory.state
        if saved:
            engine.restore(directory.checkpoint / "engine")
            self.documents = _documents_from(saved.get("documents"), sources)
            self.totals = saved["totals"]
            self.totals["documents"] += eval_totals.of_documents(self.documents[len(self.totals["documents"]) :])
        else:
            self.documents = self._documents(sources, tokenizer, begin)
            self.totals = eval_totals.begun(self.documents)
        self.saved_at = self.totals["segments"] if saved else -1
        self.feed = Feed(
            self.documents,
            tokenizer,
            config.streams,
            config.segment,
            None if config.split else config.tokens,
            state=saved["feed"] if saved else None,
            begin=begin,
        )
        self.position = self.feed.state()  # of the last whole segment

    def _documents(self, sources: list[Source], tokenizer, begin) -> list[Document]:
        if self.config.split:
            return split(sources[0], tokenizer, self.config.streams, self.config.tokens)
        documents = [Document(source) for source in sources]
        check_lengths(documents, tokenizer, begin)
        return documents

    def finish(self, progress: Callable[[dict], None]) -> dict:
        with interruptible() as stop:
            try:
                self._loop(progress, stop)
            except TextError:  # found while reading the next segment: those before are whole
                self._save()
                raise
            if stop.signal:
                self._save()
                raise stop.reason(f"after segment {self.totals['segments']}")
            if not self.totals["tokens"]:
                raise TextError(f"text {self.config.text[0]!r}: nothing to score (fewer than {self.feed.least} tokens)")
            if self.engine.learned_parameters:
                self._save()
            if self.feed.short:
                note(f"{self.feed.short:,} of {len(self.documents):,} documents had fewer than {self.feed.least} tokens and were left out")
            return self.directory.finish(eval_totals.summary(self.totals, self.config, self.engine, self.feed))

    def _loop(self, progress, stop) -> None:
        """Where a step returns before its work is done, scores are read one step late, and the device never waits for the host; not so
        across a checkpoint, whose state and totals are of the same segment."""
        self.started, waiting = time.perf_counter(), []
        try:
            while not stop.signal and (segment := self.feed.next()) is not None:
                waiting.append(self._step(segment))
                checkpoint = self._is_checkpoint(self.totals["segments"] + len(waiting))
                while len(waiting) > (self.late and not checkpoint):
                    self._count_in(waiting.pop(0), progress, stop)
        except TextError:  # found while reading the next segment
            for scored in waiting:
                self._count_in(scored, progress, stop)
            raise
        for scored in waiting:
            self._count_in(scored, progress, stop)

    def _step(self, segment: Segment) -> _Scored:
        for stream in segment.entered:
            self.engine.enter(stream)
        nll = self.engine.step(torch.from_numpy(segment.tokens), torch.from_numpy(segment.lengths))
        report = self.engine.last
        send(report)
        keeping = getattr(self.engine, "keeping", None)
        kept = None if keeping is None else dict(keeping.divergence)
        return _Scored(segment, OnTheWay({"nll": nll.detach()}), report, self.feed.state(), self._fraction(), kept)

    def _count_in(self, scored: _Scored, progress, stop) -> None:
        """Reads what a step scored, and writes it down."""
        segment, nll = scored.segment, scored.nll.wait()["nll"].float().numpy()
        self._check_finite(segment, nll)
        if self.directory.scores:
            self.directory.append_scores(_score_rows(segment, nll))
        now = time.perf_counter()
        line = eval_totals.count(self.totals, self.config, segment, nll, scored.report, now - self.started, scored.divergence)
        self.directory.append(line)
        self.position = scored.position
        stop.tell(progress, {**line, "fraction": scored.fraction, "gain": self._gain()})
        self.started = now
        if self._is_checkpoint(self.totals["segments"]):
            self._save()
            self.started = time.perf_counter()

    def _is_checkpoint(self, segments: int) -> bool:
        return bool(self.options.checkpoint) and segments % self.options.checkpoint == 0

    def _check_finite(self, segment: Segment, nll: np.ndarray) -> None:
        for stream, length in enumerate(segment.lengths):
            if not np.isfinite(nll[stream, :length]).all():
                raise RunError(
                    f"the scores of segment {self.totals['segments']}, stream {stream}, are not finite: adaptation diverged at "
                    f"{f'rates {self.config.rates}' if self.config.rates else f'lr {self.config.learning_rate:g}'}; take a smaller rate, a smaller --clip, or "
                    "--dtype fp32" + (f". What was scored before is in {self.directory.path}" if self.directory.path else "")
                )

    def _save(self) -> None:
        if not self.options.checkpoint or self.saved_at == self.totals["segments"] or not self.totals["segments"]:
            return  # where nothing was scored, nothing is kept: the directory can be begun anew
        reached = self.totals["documents"][: self.position["queued"]]  # of very many, those to come have nothing to keep
        state = {"segments": self.totals["segments"], "totals": {**self.totals, "documents": reached}, "feed": self.position}
        if self.config.split:
            state["documents"] = [{"text": 0, "start": d.start, "stop": d.stop, "state": d.state, "byte": d.byte} for d in self.documents]
        self.directory.save(self.engine, state)
        self.saved_at = self.totals["segments"]

    def _fraction(self) -> float | None:
        """Of the text that is read: 1 after its last segment, as far as its size is known."""
        shares = []
        if self.config.split:
            shares.append(self.feed.read / sum(d.stop - d.start for d in self.documents))
        elif self.config.tokens:
            shares.append(self.feed.read / self.config.tokens)
        if self.size and not self.config.split:
            shares.append(self.feed.read_bytes / self.size)
        return min(1.0, max(shares)) if shares else None

    def _gain(self) -> float | None:
        static = self.baseline.get(self.totals["tokens"])
        return None if static is None else static - self.totals["nll"] / self.totals["tokens"]


def _documents_from(saved: list[dict] | None, sources: list[Source]) -> list[Document]:
    """Those of a saved state; one that names none had each text as one document."""
    if saved is None:
        return [Document(source) for source in sources]
    return [Document(sources[d["text"]], d["start"], d["stop"], d["state"], d.get("byte", 0)) for d in saved]


def _score_rows(segment: Segment, nll: np.ndarray) -> np.ndarray:
    rows = np.zeros(int(segment.lengths.sum()), SCORE)
    at = 0
    for stream, length in enumerate(segment.lengths):
        part = rows[at : at + length]
        if length:
            part["document"] = segment.documents[stream]
            part["position"] = segment.positions[stream] + np.arange(length)
            part["nll"] = nll[stream, :length]
            part["token"] = segment.tokens[stream, 1 : length + 1]
            part["start"], part["stop"] = segment.ends[stream, :length], segment.ends[stream, 1 : length + 1]
        at += length
    return rows
