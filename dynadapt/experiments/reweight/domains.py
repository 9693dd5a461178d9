"""Text of domains as rows of tokens.

A domain's path is one of
  a directory with train.jsonl and heldout.jsonl, or directories train/ and heldout/ (what `dynadapt corpus build` writes);
  any other text that dynadapt/runs/texts reads (directory, .jsonl, .parquet, ...), of which a share is held out, by document, in an order drawn by hash.

Documents of a domain are tokenised, put one after the other with the end-of-text token between them where the model has one,
and cut into rows of T + 1 tokens, each of which starts with the last token of the row before; what is left at the end is dropped.
Attention reads across documents inside a row, as is usual in pretraining. Tokens are kept in memory, 4 bytes each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.corpus_read import check_corpus, part_files, read_documents

from .config import ReweightConfig

BATCH = 64  # documents tokenised at a time
# Tokens by what they were made of, for as long as anyone holds them: the small runs of a search, and the methods of a study, read the same texts.
_held: WeakValueDictionary[tuple, np.ndarray] = WeakValueDictionary()


@dataclass(frozen=True)
class Rows:
    """n rows of T + 1 tokens over one array."""

    tokens: np.ndarray  # uint32
    segment: int

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.segment

    def __getitem__(self, row: int) -> np.ndarray:
        start = row * self.segment
        return self.tokens[start : start + self.segment + 1].astype(np.int64)


@dataclass(frozen=True)
class Domain:
    name: str
    train: Rows
    heldout: Rows

    def digest(self) -> str:
        """Changes with the tokens."""
        return hashlib.sha256(self.train.tokens.tobytes() + b"|" + self.heldout.tokens.tobytes()).hexdigest()


def read_domains(config: ReweightConfig, model) -> list[Domain]:
    """All domains, in the order given. ConfigError or CorpusError names the domain that has too little text, or a file that is damaged."""
    if not config.domains:
        check_corpus(config.corpus)
    by = made_by(model)
    return [_read(name, path, config, model, by) for name, path in domain_paths(config).items()]


def domain_paths(config: ReweightConfig) -> dict[str, Path]:
    if config.domains:
        return {name: Path(path) for name, path in config.domains.items()}
    return {name: parts["train"].parent for name, parts in part_files(config.corpus).items()}


def _read(name: str, path: Path, config: ReweightConfig, model, by: tuple) -> Domain:
    train, heldout = (encode_rows(texts, config.segment, model, by) for texts in _documents(name, path, config))
    for what, rows in (("training", train), ("held-out", heldout)):
        if len(rows) == 0:
            raise ConfigError(
                f"domain {name!r}: its {what} text has {len(rows.tokens):,} tokens, too few for one row of "
                f"{config.segment} and the token before it; give more text, or a smaller segment ({path})"
            )
    return Domain(name, train, heldout)


def _documents(name: str, path: Path, config: ReweightConfig) -> tuple[list[str], list[str]]:
    """(training, held-out) texts."""
    for train, heldout in ((path / "train.jsonl", path / "heldout.jsonl"), (path / "train", path / "heldout")):
        if train.exists() != heldout.exists():
            raise ConfigError(
                f"domain {name!r}: {path} has {(train if train.exists() else heldout).name} but no "
                f"{(heldout if train.exists() else train).name}"
            )
        if train.exists():
            return tuple([text for _, text in read_documents(part, config.field)] for part in (train, heldout))
    return split_documents(name, list(read_documents(path, config.field)), config.heldout, config.seed)


def split_documents(name: str, documents: list[tuple[str, str]], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(training, held-out) texts: in an order drawn by hash, documents are held out until they hold `share` of the characters."""
    if len(documents) < 2:
        raise ConfigError(
            f"domain {name!r} has one document, so none can be held out; give several, or a directory with train.jsonl and heldout.jsonl"
        )
    order = sorted(range(len(documents)), key=lambda i: hashlib.sha256(f"{seed}:{name}:{i}:{documents[i][0]}".encode()).digest())
    wanted, size, held = share * sum(len(text) for _, text in documents), 0, set()
    for index in order[:-1]:
        if size >= wanted:
            break
        held.add(index)
        size += len(documents[index][1])
    return [text for i, (_, text) in enumerate(documents) if i not in held], [documents[i][1] for i in sorted(held)]


def made_by(model) -> tuple:
    """All of a model that decides the tokens of a text. Of a tokenizer with 262,144 ids it takes seconds: once for many texts."""
    tokenizer = model.tokenizer
    splits = tokenizer.backend.encode_special_tokens  # whether a special token that a text spells is one: no file of a tokenizer says it
    return tokenizer.fingerprint(), splits, tokenizer.eos_id, tuple(tokenizer.begins), model.config.vocab_size


def encode_rows(texts: list[str], segment: int, model, by: tuple | None = None) -> Rows:
    """The texts, one after the other, as rows of segment + 1 tokens. Tokens of the same texts that are still held somewhere are shared, not made again.

    by: `made_by` of the model, where more texts than these are read.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:".encode() + text.encode("utf-8", "surrogatepass"))
    key = digest.hexdigest(), *(by or made_by(model))
    tokens = _held.get(key)
    if tokens is None:
        tokens = _held[key] = _encode(texts, model)
    return Rows(tokens, segment)


def _encode(texts: list[str], model) -> np.ndarray:
    end, begins = model.tokenizer.eos_id, np.array(model.tokenizer.begins, np.uint32)
    pieces = []
    for ids in _encoded(texts, model):
        if not len(begins) or list(ids[: len(begins)]) != begins.tolist():  # a text that spells it is given no second one
            pieces.append(begins)
        pieces.append(np.asarray(ids, np.uint32))
        if end is not None:
            pieces.append(np.array([end], np.uint32))
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)
    if len(tokens) and tokens.max() >= model.config.vocab_size:
        raise ConfigError(f"the tokenizer gave id {tokens.max()}, the model's vocabulary ends at {model.config.vocab_size - 1}")
    tokens.setflags(write=False)  # runs share it
    return tokens


def _encoded(texts: Iterable[str], model) -> Iterator[list[int]]:
    texts = list(texts)
    for start in range(0, len(texts), BATCH):
        for encoding in model.tokenizer.backend.encode_batch(texts[start : start + BATCH], add_special_tokens=False):
            yield encoding.ids
