"""Dynamic evaluation: score a text segment by segment, learning from each one right after it is scored.

The first token of a document is not scored where nothing precedes it; where the tokenizer puts a beginning-of-text token before a text, that
one stands in front, unscored, and the document's own first token is scored. None is invented.
Bits per byte counts the bytes of scored tokens only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from dynadapt.adapt.methods import LATER
from dynadapt.adapt.optimizers import OPTIMIZERS
from dynadapt.common.environment import peak_memory_bytes
from dynadapt.common.notes import note
from dynadapt.engine.on_the_way import OnTheWay
from dynadapt.engine.report import StepReport, arrive, send
from dynadapt.runs.document_streams import Feed, Segment, check_lengths
from dynadapt.runs.in_memory import Unwritten
from dynadapt.runs.rundir import SCORE, RunDirectory, RunError, read_json
from dynadapt.runs.stopping import Interrupted, StopRun, interruptible
from dynadapt.runs.text import Document, Source, TextError, expand, inputs, split, streaming_tokenizer

from . import guarded, kept_prior
from .adapter_words import PATTERNS, pattern_of, targets_of
from .config import ConfigError, EvalConfig
from .defaults import begin_of, note_usual_rate, settle, settle_bos, settled, windows_begin
from .optimizer_words import betas_of

__all__ = ["Interrupted", "RunOptions", "StopRun", "adapt_of", "build_engine", "find_baseline", "interruptible", "optimizer_of", "run"]
PHASES = ("forward", "backward", "update", "recompute")


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept, as opposed to what it computes. `checkpoint` is in segments; 0 saves no state at all. `log`: names of logs that
    see every line of metrics too (logs.py)."""

    resume: bool = False
    scores: bool = False
    checkpoint: int = 64
    log: tuple[str, ...] = ()


def run(
    config: EvalConfig,
    out: str | Path | Unwritten,
    options: RunOptions = RunOptions(),
    progress: Callable[[dict], None] | None = None,
    model=None,
    make_engine: Callable | None = None,
) -> dict:
    """Runs to the end, or on to the end with options.resume, and returns the summary.

    1. Check the texts, settle what is open (defaults.py), look at the run directory (a finished one is returned as it is).
    2. Load the model, check that its weights are finite, build the engine and the feed; go back to the last checkpoint. Nothing
       is written before all of this has succeeded.
    3. For each segment: read, enter new documents, step, write scores and metrics; save every `options.checkpoint` segments.
    4. Write summary.json.

    progress is called after each segment, when its scores are written and before the next one is read, with its line of metrics plus
    "fraction" (of the text, None if unknown) and "gain" (over a static run on the same text next to this one, None if there is
    none). One that returns False or raises StopRun stops the run: it is saved, Interrupted is raised, and options.resume goes on.
    Whatever else it raises is raised here, once the run is saved. docs/logging.md has the keys.
    Raises TextError, ConfigError, RunError, Interrupted.
    """
    sources, facts = _sources(config)
    kept = kept_prior.check(config, facts)
    loaded = cache(lambda: _load(config.model) if model is None else model)
    unwritten = isinstance(out, Unwritten)
    config = settled(config, None if unwritten else out, options.resume, loaded)
    if isinstance(config.reset, int) and config.adapt != "none" and config.reset <= config.segment:
        note(f"reset {config.reset} with segments of {config.segment}: weights go back before any update counts; nothing is learned")
    directory = out if unwritten else RunDirectory(out, config.to_dict(), options.resume, options.scores, options.log)
    try:
        _expect_texts(directory, sources, facts)
        if directory.finished:
            return directory.finished
        model = _checked(config, loaded())
        note_usual_rate(config, model.config)
        tokenizer, begin = streaming_tokenizer(model.tokenizer), begin_of(model.tokenizer, config.bos)
        begun = {} if begin is None else {"the token that texts begin with": begin}
        directory.expect({"the model": model.fingerprint(), "the tokenizer": model.tokenizer.fingerprint(), **begun, **kept})
        engine = (make_engine or build_engine)(model, config)
        if config.reads_statistics:
            statistics, digest = _statistics_text(config, facts)
            directory.expect({f"statistics text {config.statistics!r}": digest})
            engine.gather_statistics(_statistics(statistics, config, tokenizer, begin))
        run = _Run(config, options, directory, engine, sources, facts, tokenizer, begin)
        run.baseline = find_baseline(directory.path, config)
        directory.begin(folder=str(Path.cwd()))  # to which the names of texts are relative
        return run.finish(progress or (lambda event: None))
    except (TextError, ConfigError):  # a text that turns out empty, a log that can't be opened
        directory.abandon()
        raise
    finally:
        directory.close()


def _sources(config: EvalConfig) -> tuple[list[Source], list[dict]]:
    if not config.text:
        raise ConfigError("text: none given; name files, - for standard input, or builtin:python-reference")
    if list(config.text).count("-") > 1:
        raise ConfigError("text: - (standard input) can be given once only")
    sources = expand(config.text, config.field)
    if config.split and len(sources) > 1:
        raise ConfigError(
            f"split: cuts one text into streams, but {', '.join(config.text)} holds {len(sources)} documents; give one of them, or "
            "leave --split out"
        )
    facts = [source.check() for source in sources]
    most = min(config.tokens or math.inf, facts[0].get("bytes", math.inf)) // 2 if config.split else math.inf
    if config.streams > most:
        raise ConfigError(f"streams {config.streams} with split: the text has at most {2 * most:,} tokens, for at most {most:,} parts")
    return sources, facts


def _expect_texts(directory: RunDirectory, sources: list[Source], facts: list[dict]) -> None:
    """TextError for a text that isn't the one the run began with; a pipe is compared as it is read (text.TokenReader)."""
    for source, now, then in zip(sources, facts, (directory.state or {}).get("texts", facts)):
        if now != then:
            raise TextError(f"text {source.spec!r} has changed since this run began")
    expect_files(directory, {f"text {path!r}": fact or None for path, fact in inputs(sources, facts).items()})


def expect_files(directory: RunDirectory, files: dict[str, dict | None]) -> None:
    """TextError for a file, of a directory too, that was changed, added or removed since the run began; names as inputs.json has them."""
    known = [name for name in directory.inputs or () if name.startswith("text ")]
    if known and (others := sorted(set(known) ^ set(files))):
        raise TextError(
            f"{others[0]} was {'removed' if others[0] in known else 'added'} since this run began ({directory.path}); put the files "
            "back as they were, or choose another --out"
        )
    try:
        directory.expect(files)
    except RunError as error:
        raise TextError(str(error)) from None


def _load(name: str):
    import dynadapt.model

    return dynadapt.model.load(name)


def _checked(config: EvalConfig, model):
    model.check_finite()
    if model.tokenizer is None:
        raise RunError(
            f"model {config.model!r} has no tokenizer; put its tokenizer.json next to the weights (of a live model, give tokenizer), or take a GGUF file that holds "
            f"one{_or_fetched(config.model)}"
        )
    return model


def _or_fetched(name: str) -> str:
    from dynadapt.model.hub_cache import fetch_line, parse_id

    return f", or fetch it with: {fetch_line(name)}" if "/" in name and not Path(name).exists() and parse_id(name) else ""


def optimizer_of(config: EvalConfig):
    """The optimizer that a configuration describes."""
    kind, more = OPTIMIZERS[config.optimizer], {}
    if getattr(config, "betas", None) and config.optimizer in ("adam", "adamw"):  # reweighting has neither of the two
        more["betas"] = betas_of(config.betas)
    if getattr(config, "weight_decay", None) is not None and config.optimizer == "adamw":
        more["weight_decay"] = config.weight_decay
    return kind(lr=config.learning_rate, decay=config.decay, clip=config.clip, **more)


def adapt_of(config: EvalConfig):
    """What learns, as a configuration describes it; None for nothing."""
    from dynadapt.adapt import Full, LoRA, RowSparse

    layers = getattr(config, "layers", None)  # which reweighting has none of
    targets = {"targets": targets_of(config.targets), "layers": range(*layers) if layers else None}
    own = {name: pattern_of(getattr(config, name, None), kind) for name, kind in PATTERNS.items()}
    own |= {name: getattr(config, name, LATER[name]) for name in LATER if name not in own}
    own["also"] = own["also"].split(",") if own["also"] else ()
    return {
        "none": lambda: None,
        "lora": lambda: LoRA(rank=config.rank, alpha=config.alpha, **own, **targets),
        "rows": lambda: RowSparse(density=config.density, select=getattr(config, "select", "gradient"), **targets),
        "full": lambda: Full(**targets),
    }[config.adapt]()


def memory_of(config: EvalConfig, model_config=None):
    """What the engine of a model of this ModelConfig remembers, as a configuration describes it; None for nothing."""
    from dynadapt.engine.memory import Overlap, SegmentMemory

    if config.memory:
        return SegmentMemory(length=config.memory, sinks=config.sinks, refresh=config.refresh)
    if config.context:
        return Overlap(context=config.context, begin=int(windows_begin(config, model_config)))
    return SegmentMemory(length=0, sinks=1) if windows_begin(config, model_config) else None


def build_engine(model, config: EvalConfig):
    """The engine that a configuration describes; what is open in it is settled here."""
    from dynadapt.engine import Engine
    from dynadapt.engine.rate_mixture import RateMixture

    config = settle(settle_bos(config, model.tokenizer) if config.bos == "auto" else config, model.config)
    adapt = adapt_of(config)
    make = Engine
    if adapt and config.rates:
        make = partial(RateMixture, rates=guarded.rates_of(config.rates), halve=config.halve)
    return make(
        model,
        adapt=adapt,
        optimizer=optimizer_of(config) if adapt else None,
        memory=memory_of(config, model.config),
        streams=config.streams,
        segment=config.segment,
        every=config.every,
        reset=config.reset,
        dtype=config.dtype,
        backend=config.backend,
        seed=config.seed,
        device=config.device,
        batch=config.batch or None,
        recompute=config.recompute or None,
        base=config.base,
        guard=config.guard if adapt else None,
        learn_from=config.learn_from if adapt else None,
        hypergradient=config.hypergradient if config.adapt == "lora" else None,
        **({"slow": slow_of(config)} if config.levels else {}),
        **kept_prior.engine_options(config, model),
    )


def slow_of(config: EvalConfig):
    """The slow level of a run with levels."""
    from dynadapt.adapt import SGD, Slow

    given = {"every": config.slow_every} if config.slow_every else {}
    return Slow(optimizer=SGD(lr=1e-3 if config.slow_lr is None else config.slow_lr, momentum=0.9), **given)


def _statistics_text(config: EvalConfig, facts: list[dict]) -> tuple[list[Source], dict]:
    """The documents of the statistics text, which must not be those that are scored (facts), and what inputs.json keeps of them."""
    sources = expand((config.statistics,), config.field)
    seen, scored = [source.check() for source in sources], {fact.get("sha256") for fact in facts} - {None}
    for source, fact in zip(sources, seen):
        if config.statistics in config.text or fact.get("sha256") in scored:
            which = "" if source.spec == config.statistics else f" ({source.spec})"
            raise ConfigError(
                f"statistics {config.statistics!r} is the text to be scored{which}; give another one, or the scores would have seen it"
            )
    return sources, seen[0] if len(sources) == 1 else inputs(sources, seen)


def _statistics(sources: list[Source], config: EvalConfig, tokenizer, begin: int | None, tokens: int = 16384):
    """Segments [T + 1] of the statistics text."""
    feed = Feed([Document(source) for source in sources], tokenizer, 1, config.segment, tokens, begin=begin)
    while (segment := feed.next()) is not None:
        yield torch.from_numpy(segment.tokens[0, : segment.lengths[0] + 1])


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


class _Run:
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
            self.totals["documents"] += _no_totals(self.documents[len(self.totals["documents"]) :])
        else:
            self.documents = self._documents(sources, tokenizer, begin)
            self.totals = {
                "segments": 0,
                "tokens": 0,
                "bytes": 0,
                "nll": 0.0,
                "seconds": 0.0,
                "updates": 0,
                "skipped_updates": 0,
                "resets": 0,
                "flops": dict.fromkeys(PHASES, 0),
                "documents": _no_totals(self.documents),
            }
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
            return self.directory.finish(self._summary())

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
        line = self._count(segment, nll, scored.report, now - self.started, scored.divergence)
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

    def _count(self, segment: Segment, nll: np.ndarray, report: StepReport, seconds: float, divergence: dict | None) -> dict:
        """Adds one segment to the totals and returns its line of metrics."""
        arrive(report)
        totals = self.totals
        sums = [float(row[:length].astype(np.float64).sum()) for row, length in zip(nll, segment.lengths)]
        for stream, document in enumerate(segment.documents):
            if document is not None:
                of = totals["documents"][document]
                of["tokens"] += int(segment.lengths[stream])
                of["bytes"] += int(segment.sizes[stream])
                of["nll"] += sums[stream]
        tokens, size, flops = (
            int(segment.lengths.sum()),
            int(segment.sizes.sum()),
            {phase: int(report.flops.get(phase, 0)) for phase in PHASES},
        )
        chosen = self.config.learn_from is not None and self.config.adapt != "none"
        totals["tokens"] += tokens
        totals["bytes"] += size
        totals["nll"] += math.fsum(sums)
        totals["seconds"] += seconds
        totals["updates"] += sum(map(bool, report.updated))
        totals["skipped_updates"] += sum(map(bool, report.skipped))
        totals["resets"] += sum(map(bool, report.was_reset))
        if chosen:
            _count_learned(totals, segment, report.learned_tokens)
        for phase in PHASES:
            totals["flops"][phase] += flops[phase]
        index = totals["segments"]
        totals["segments"] += 1
        return {
            "segment": index,
            "documents": segment.documents,
            "lengths": segment.lengths.tolist(),
            "tokens": tokens,
            "nll": math.fsum(sums) / tokens,
            "stream_nll": [total / int(length) if length else None for total, length in zip(sums, segment.lengths)],
            "bytes": size,
            "total_tokens": totals["tokens"],
            "total_nll": totals["nll"] / totals["tokens"],
            "total_bits_per_byte": _bits_per_byte(totals["nll"], totals["bytes"]),
            "seconds": seconds,
            "total_seconds": totals["seconds"],
            "flops": flops,
            "updated": [bool(x) for x in report.updated],
            "skipped": [bool(x) for x in report.skipped],
            "reset": [bool(x) for x in report.was_reset],
            "grad_norm": [_finite(x) for x in report.grad_norm],
            **({"learned_tokens": report.learned_tokens} if chosen else {}),
            **kept_prior.count(totals, divergence, report.updated),
            **guarded.count(totals["documents"], segment, nll, report),
        }

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

    def _summary(self) -> dict:
        totals, engine = self.totals, self.engine
        mean = totals["nll"] / totals["tokens"]
        documents = [
            {
                "name": d["name"],
                "number": number,
                "tokens": d["tokens"],
                "bytes": d["bytes"],
                "nll": d["nll"] / d["tokens"],
                "bits_per_byte": _bits_per_byte(d["nll"], d["bytes"]),
                **guarded.of_document(d),
            }
            for number, d in enumerate(totals["documents"])
            if d["tokens"]
        ]
        return {
            "nll": mean,
            **guarded.summary(totals["documents"], self.config),
            "perplexity": math.exp(min(mean, 700.0)),
            "bits_per_byte": _bits_per_byte(totals["nll"], totals["bytes"]),
            "tokens": totals["tokens"],
            "bytes": totals["bytes"],
            "seconds": totals["seconds"],
            "tokens_per_second": totals["tokens"] / totals["seconds"],
            "flops": totals["flops"],
            "flops_per_token": sum(totals["flops"].values()) / totals["tokens"],
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(engine.device) if engine.device.type == "cuda" else None,
            "learned_parameters": int(engine.learned_parameters),
            "updates": totals["updates"],
            "skipped_updates": totals["skipped_updates"],
            "resets": totals["resets"],
            **_learned_from(totals),
            **kept_prior.summary(totals),
            **({"levels": self.config.levels, "slow_updates": engine.slow_level.learner.updates} if self.config.levels else {}),
            "segments": totals["segments"],
            "short_documents": self.feed.short,
            **({} if self.feed.begin is None else {"begins_with": self.feed.begin}),
            "backend": engine.backend,
            "device": str(engine.device),
            "dtype": engine.dtype if isinstance(engine.dtype, str) else self.config.dtype,
            "model": self.config.model,
            "documents": documents,
        }


def _count_learned(totals: dict, segment: Segment, learned: list) -> None:
    """Adds the tokens that each stream learned from, None where its update was not due, and with rates each learner's."""
    of = totals.setdefault("learned_from", {"segments": 0, "tokens": 0, "of_segments": 0})
    of["segments"] += sum(map(bool, learned))
    of["tokens"] += sum(n or 0 for n in learned)
    of["of_segments"] += int((segment.lengths > 0).sum()) * (len(learned) // len(segment.lengths))


def _learned_from(totals: dict) -> dict:
    """What summary.json says of it; nothing where all was learned from."""
    if "learned_from" not in totals:
        return {}
    of = totals["learned_from"]
    return {"learned_from": {**of, "share": of["segments"] / of["of_segments"]}}


def _no_totals(documents: list[Document]) -> list[dict]:
    return [{"name": d.name, "tokens": 0, "bytes": 0, "nll": 0.0} for d in documents]


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


def _bits_per_byte(nll: float, size: int) -> float | None:
    return nll / (math.log(2) * size) if size else None


def _finite(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def find_baseline(path: Path | None, config: EvalConfig) -> dict[int, float]:
    """Tokens scored -> mean NLL so far, of a static run on the same text in the same parent directory; {} if there is none."""
    if path is None or config.adapt == "none" or not path.parent.is_dir():
        return {}
    from dynadapt.runs.append_only import read_metrics
    from dynadapt.runs.kinds import kind_of

    keys = ("model", "text", "field", "tokens", "streams", "split", "segment", "memory", "sinks", "context", "bos")
    mine = config.to_dict()
    for other in sorted(path.parent.iterdir()):
        if other == path or not (other / "config.json").is_file():
            continue
        try:
            theirs = read_json(other / "config.json")
        except RunError:
            continue
        if kind_of(theirs) == "eval" and theirs.get("adapt") == "none" and all(theirs.get(key) == mine.get(key) for key in keys):
            try:
                return {line["total_tokens"]: line["total_nll"] for line in read_metrics(other)}
            except RunError:  # another run's files: it says so itself
                continue
    return {}
