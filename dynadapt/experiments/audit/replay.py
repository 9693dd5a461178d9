"""A run that is played again: its text, model and settings from its record, its segments one behind the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dynadapt.experiments import dyneval, eval_texts, guarded, kept_prior
from dynadapt.experiments.compare.joined_scores import sources_of
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.defaults import begin_of
from dynadapt.model import load
from dynadapt.runs.document_streams import Feed, Segment
from dynadapt.runs.metrics import Run, read_run
from dynadapt.runs.text import Document, split, streaming_tokenizer
from dynadapt.runs.whole_files import RunError, read_json_or


@dataclass
class Replay:
    """`segments`: the first ones of the run, as it read them; `engine`: as it began; `whole`: whether they are all that it scored."""

    run: Run
    config: EvalConfig
    engine: object
    segments: list[Segment]
    whole: bool

    @property
    def tokens(self) -> int:
        return sum(int(segment.lengths.sum()) for segment in self.segments)

    @property
    def recorded(self) -> int:
        """Scored tokens that the record has."""
        return self.run.summary["tokens"] if self.run.summary is not None else sum(line["tokens"] for line in self.run.metrics)

    @property
    def kept_scores(self) -> bool:
        return (self.run.path / "scores.npy").exists()

    @property
    def in_parts(self) -> bool:
        """Whether several processes made the run, whose lines of metrics are not in the order of one."""
        return (self.run.path / "parts").is_dir()


def open_run(path: str | Path, tokens: int) -> Replay:
    """Everything for playing the first `tokens` scored tokens of a run again.

    Raises:
        RunError, TextError: what is there is no run of `dynadapt eval`, is damaged, or its text, model or tokenizer have changed.
    """
    run = read_run(path)
    if run.kind != "eval":
        raise RunError(f"{run.path} is a run of dynadapt {run.kind}; audit takes runs of dynadapt eval")
    if (run.path / "scores.npy").exists() and "token" not in (run.scores().dtype.names or ()):
        raise RunError(f"{run.path} was made by a version whose scores keep no tokens: run it again with this one")
    config = EvalConfig.from_dict(run.config)
    guarded.refuse(config, "in the run: an audit goes back to where a stream was, which learners side by side and levels can't", ("guard",))
    sources = sources_of(run)
    model = load(_found(run, config.model))
    _expect(run, {"the model": model.fingerprint(), "the tokenizer": model.tokenizer.fingerprint()})
    tokenizer = streaming_tokenizer(model.tokenizer)
    documents = split(sources[0], tokenizer, config.streams, config.tokens) if config.split else [Document(source) for source in sources]
    begin = begin_of(model.tokenizer, config.bos)
    feed = Feed(documents, tokenizer, config.streams, config.segment, None if config.split else config.tokens, begin=begin)
    segments, whole = _segments(feed, tokens, None if run.summary is not None else len(run.metrics))
    if not segments:
        raise RunError(f"{run.path} has scored nothing that could be played again")
    _expect(run, kept_prior.check(config, [source.check() for source in sources]))
    engine = dyneval.build_engine(model, config)
    if config.reads_statistics:
        statistics, digest = eval_texts.statistics_text(config, [source.check() for source in sources])
        _expect(run, {f"statistics text {config.statistics!r}": digest})
        engine.gather_statistics(eval_texts.statistics_segments(statistics, config, tokenizer, begin))
    return Replay(run, config, engine, segments, whole)


def _found(run: Run, model: str) -> str:
    """The model's name; where a path that is not here is there where the run was made, that path."""
    made = read_json_or(run.path / "env.json", {}).get("folder")
    return str(Path(made) / model) if made and not Path(model).exists() and (Path(made) / model).exists() else model


def _expect(run: Run, inputs: dict) -> None:
    known = run.inputs()
    for name, value in inputs.items():
        if known.get(name) not in (None, value):
            raise RunError(f"{name} is not what {run.path} scored with: it has changed since")


def _segments(feed: Feed, tokens: int, most: int | None) -> tuple[list[Segment], bool]:
    segments: list[Segment] = []
    while tokens > 0 and (most is None or len(segments) < most):
        segment = feed.next()
        if segment is None:
            return segments, True
        segments.append(segment)
        tokens -= int(segment.lengths.sum())
    return segments, len(segments) == most or feed.next() is None


def place_of(segment: Segment, stream: int, j: int) -> dict:
    """Which token the j-th scored one of a row is."""
    return {"document": int(segment.documents[stream]), "position": int(segment.positions[stream] + j)}


def step(engine, segment: Segment, tokens: np.ndarray | None = None) -> np.ndarray:
    """float32 [S, T] nats of a segment, or of `tokens` in its tokens' place."""
    given = segment.tokens if tokens is None else tokens
    return engine.step(torch.from_numpy(given), torch.from_numpy(segment.lengths)).detach().float().cpu().numpy()


def step_alone(engine, stream: int, segment: Segment) -> np.ndarray:
    """float32 [T] nats of one stream's row of a segment, while the others rest."""
    row = slice(stream, stream + 1)
    nll = engine.step(torch.from_numpy(segment.tokens[row]), torch.from_numpy(segment.lengths[row]), streams=[stream])
    return nll.detach().float().cpu().numpy()[0]


def in_order(engine, documents: list[np.ndarray], order: list[int], segment: int) -> dict[int, np.ndarray]:
    """float32 [L] nats of whole documents [L + 1], which enter the engine's streams in this order."""
    waiting, slots, scores = list(order), [None] * engine.streams, {d: [] for d in order}
    while True:
        for stream, slot in enumerate(slots):
            if slot is None and waiting:
                slots[stream] = (waiting.pop(0), 0)
                engine.enter(stream)
        if not any(slots):
            return {d: np.concatenate(parts) for d, parts in scores.items()}
        tokens, lengths = np.zeros((engine.streams, segment + 1), np.int64), np.zeros(engine.streams, np.int64)
        for stream, slot in enumerate(slots):
            if slot is not None:
                row = documents[slot[0]][slot[1] : slot[1] + segment + 1]
                tokens[stream, : len(row)], lengths[stream] = row, len(row) - 1
        nll = engine.step(torch.from_numpy(tokens), torch.from_numpy(lengths)).detach().float().cpu().numpy()
        for stream, slot in enumerate(slots):
            if slot is not None:
                scores[slot[0]].append(nll[stream, : lengths[stream]])
                begins = slot[1] + int(lengths[stream])
                slots[stream] = (slot[0], begins) if begins < len(documents[slot[0]]) - 1 else None
