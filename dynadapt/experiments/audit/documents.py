"""Documents of token ids for an audit: read from a file, made up, and changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynadapt.common.errors import ConfigError

PHRASES, COMMON = 40, 2000


def read(path: str | Path, vocabulary: int) -> list[np.ndarray]:
    """Documents int64 [L] of a file with a line each: a JSON list of ids, or an object whose "tokens" are one. ConfigError names the
    line that is neither."""
    documents = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        ids = content.get("tokens") if isinstance(content, dict) else content
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocabulary for token in ids):
            raise ConfigError(
                f'documents {str(path)!r}, line {number}: give a list of ids from 0 to {vocabulary - 1}, or {{"tokens": such a list}}'
            )
        if len(ids) < 2:
            raise ConfigError(f"documents {str(path)!r}, line {number}: {len(ids)} tokens; give at least 2")
        documents.append(np.array(ids, np.int64))
    if not documents:
        raise ConfigError(f"documents {str(path)!r}: none in it")
    return documents


def made_up(vocabulary: int, count: int, length: int, seed: int) -> list[np.ndarray]:
    """`count` documents int64 [length] that repeat themselves and each other, as texts do: what looks up earlier text finds something.

    Tokens are drawn with probabilities 1, 1/2, 1/3, ...; half of the text is made of phrases of 3 to 12 tokens that all documents share.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(vocabulary)[:COMMON]
    p = 1.0 / np.arange(1, len(ids) + 1)
    draw = lambda n: rng.choice(ids, size=n, p=p / p.sum())  # noqa: E731
    phrases = [draw(rng.integers(3, 13)) for _ in range(PHRASES)]
    documents = []
    for _ in range(count):
        pieces, tokens = [], 0
        while tokens < length:
            pieces.append(phrases[rng.integers(PHRASES)] if len(pieces) % 2 else draw(rng.integers(1, 13)))
            tokens += len(pieces[-1])
        documents.append(np.concatenate(pieces)[:length])
    return documents


def changed(document: np.ndarray, start: int, pool: np.ndarray, vocabulary: int, rng: np.random.Generator) -> np.ndarray:
    """The document with every token from `start` on replaced by another one, drawn from `pool`, the tokens of texts of the same kind."""
    new, old = document.copy(), document[start:]
    drawn = pool[rng.integers(len(pool), size=len(old))]
    others = np.unique(pool)
    if len(others) == 1:
        others = np.arange(vocabulary)
    place = np.searchsorted(others, drawn)  # of a token that is the old one: its neighbour in its place
    drawn = np.where(drawn == old, others[(place + 1) % len(others)], drawn)
    new[start:] = drawn
    return new


def strata(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` numbers below `total` in order, one drawn from each of as many equal parts; all of them where there are no more."""
    count = min(count, total)
    edges = [total * part // count for part in range(count + 1)]
    return [int(rng.integers(low, high)) for low, high in zip(edges, edges[1:])]


def tokens_in(documents: Sequence[np.ndarray]) -> int:
    return sum(map(len, documents))
