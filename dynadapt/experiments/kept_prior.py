"""`--keep-prior FILE,weight=..,tokens=..,first=..`: a pull towards the prior on a reference text (adapt/keep_prior.py), as a run has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from dynadapt.adapt.keep_prior import MOST, KeepPrior
from dynadapt.common.errors import ConfigError

if TYPE_CHECKING:
    import torch

ACCEPTED = "FILE or FILE,NAME=VALUE,... with each NAME once, of weight (a number above 0), tokens (1 or more) and first (more than tokens)"


@dataclass(frozen=True)
class Reference:
    """What the words say: the text, and of it the ``first`` tokens, in pieces of ``tokens`` of which each update reads one."""

    file: str
    weight: float = KeepPrior.weight
    tokens: int = KeepPrior.tokens
    first: int = 4096

    @property
    def word(self) -> str:
        """As the command line has it, without what is the default."""
        said = ((f.name, getattr(self, f.name), f.default) for f in fields(self)[1:])
        return ",".join([self.file, *(f"{name}={value!r}" for name, value, usual in said if value != usual)])


def parse(value) -> str:
    """The words in their one form. The name of the file ends before the first comma that NAME= follows."""
    return reference_of(value).word


def reference_of(words) -> Reference:
    """What ``parse`` takes and gives.

    Raises:
        ConfigError: words that say something else.
    """
    refused = ConfigError(f"keep_prior {words!r}: give {ACCEPTED}, at most {MOST:,}")
    if not isinstance(words, str):
        raise refused
    parts = words.split(",")
    end = next((i for i, part in enumerate(parts) if i and "=" in part), len(parts))
    kinds, given = {"weight": float, "tokens": int, "first": int}, {}
    try:
        for part in parts[end:]:
            name, _, number = part.partition("=")
            if name in given:
                raise refused
            given[name] = kinds[name](number)
    except (KeyError, ValueError):
        raise refused from None
    found = Reference(",".join(parts[:end]), **given)
    if not found.file or not (0 < found.weight < math.inf and 1 <= found.tokens < found.first <= MOST):
        raise refused
    return found


def check(config, scored: Sequence[dict] = ()) -> dict:
    """What inputs.json keeps of the reference text, {} without one, by a look at its files alone.

    scored: size and digest of each text that is scored, which the reference must not be one of.
    """
    if config.keep_prior is None or config.adapt == "none":
        return {}
    from dynadapt.runs.text import TextError, inputs

    file = reference_of(config.keep_prior).file
    if file == "-":
        raise ConfigError("keep_prior '-': a pipe can be read once, and a run that goes on reads the text again; give a file")
    try:
        sources = _sources(config, file)
        facts = [source.check() for source in sources]
    except TextError as error:
        raise TextError(f"keep_prior: {error}") from None
    seen = {fact.get("sha256") for fact in scored}
    for source, fact in zip(sources, facts):
        if "sha256" not in fact:
            raise ConfigError(f"keep_prior {file!r}: a pipe can be read once, and a run that goes on reads the text again; give a file")
        if file in config.text or fact["sha256"] in seen:
            which = "" if source.spec == file else f" ({source.spec})"
            raise ConfigError(
                f"keep_prior {file!r} is the text to be scored{which}; give another one, or what is learned from would hold tokens that are "
                "not scored yet"
            )
    return {f"kept text {file!r}": facts[0] if len(sources) == 1 else inputs(sources, facts)}


def engine_options(config, model) -> dict:
    """Arguments of ``Engine``; none where nothing is kept.

    Raises:
        ConfigError: the reference text is too short for one piece.
    """
    if config.keep_prior is None or config.adapt == "none":
        return {}
    said = reference_of(config.keep_prior)
    ids = _tokens(_sources(config, said.file), model.tokenizer, said.first)
    if len(ids) <= said.tokens:
        raise ConfigError(
            f"keep_prior {said.file!r} has {len(ids):,} tokens: give a text of more than tokens={said.tokens}, or fewer tokens"
        )
    return {"keep": KeepPrior(ids, weight=said.weight, tokens=said.tokens), "static": False}  # recorded steps can't keep


def _sources(config, file: str) -> list:
    from dynadapt.runs.text import expand

    return expand((file,), config.field)


def _tokens(sources, tokenizer, first: int) -> torch.Tensor:
    """The first tokens of a text, its documents one behind the other."""
    import torch

    from dynadapt.runs.document_streams import Feed
    from dynadapt.runs.text import Document, streaming_tokenizer

    feed = Feed([Document(source) for source in sources], streaming_tokenizer(tokenizer), 1, 512, first)
    found = []
    while (segment := feed.next()) is not None:
        row = torch.from_numpy(segment.tokens[0, : segment.lengths[0] + 1]).clone()
        found.append(row if segment.entered else row[1:])
    return torch.cat(found)[:first] if found else torch.empty(0, dtype=torch.int64)


# ---- what a run counts


def count(totals: dict, divergence: dict[int, float] | None, updated: list) -> dict:
    """Adds the divergences before one step's updates to the totals, {stream: nats a reference token}; what the line of metrics says."""
    if divergence is None:
        return {}
    line = [divergence.get(stream) if was else None for stream, was in enumerate(updated)]
    known = [value for value in line if value is not None]
    of = totals.setdefault("divergence", {"sum": 0.0, "updates": 0, "last": None})
    if known:
        of["sum"] += math.fsum(known)
        of["updates"] += len(known)
        of["last"] = math.fsum(known) / len(known)
    return {"divergence": line}


def summary(totals: dict) -> dict:
    """What summary.json says of it; nothing where nothing was kept."""
    if "divergence" not in totals:
        return {}
    of = totals["divergence"]
    return {"divergence": {"mean": of["sum"] / of["updates"] if of["updates"] else None, "last": of["last"], "updates": of["updates"]}}


def rows(found: dict) -> list[tuple[str, str]]:
    """What a table of a finished run shows of it."""
    if not found.get("divergence", {}).get("updates"):
        return []
    of = found["divergence"]
    return [("divergence", f"{of['mean']:.4f} nats from the prior on the reference text, {of['last']:.4f} at the last update")]
