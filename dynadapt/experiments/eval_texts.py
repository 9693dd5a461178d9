"""The texts of an evaluation: what is scored, held to what it was when the run began, and what statistics are gathered on."""

from __future__ import annotations

import math

import torch

from dynadapt.runs.document_streams import Feed
from dynadapt.runs.rundir import RunDirectory, RunError
from dynadapt.runs.text import Document, Source, TextError, expand, inputs

from .config import ConfigError, EvalConfig


def sources_of(config: EvalConfig) -> tuple[list[Source], list[dict]]:
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


def expect_texts(directory: RunDirectory, sources: list[Source], facts: list[dict]) -> None:
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


def statistics_text(config: EvalConfig, facts: list[dict]) -> tuple[list[Source], dict]:
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


def statistics_segments(sources: list[Source], config: EvalConfig, tokenizer, begin: int | None, tokens: int = 16384):
    """Segments [T + 1] of the statistics text."""
    feed = Feed([Document(source) for source in sources], tokenizer, 1, config.segment, tokens, begin=begin)
    while (segment := feed.next()) is not None:
        yield torch.from_numpy(segment.tokens[0, : segment.lengths[0] + 1])
