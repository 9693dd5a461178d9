"""Paragraphs of the held-out text that the learned text has too, word for word or nearly: what they gain is memory, not adaptation.

Compared are letters without spaces and without case, so that other line breaks hide nothing, in overlapping runs of SHINGLE of them (Broder
1997, "On the resemblance and containment of documents"; runs of letters, so that languages without spaces are covered too). A
paragraph is repeated where at least REPEATED of its runs occur anywhere in the learned text. Paragraphs end at blank lines;
long ones are judged in pieces of LONGEST letters, those shorter than SHORTEST (headings, closing braces) not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

SHINGLE = 24
REPEATED = 0.5
SHORTEST, LONGEST = 64, 1000
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash, modulo 2^64
CHUNK = 1 << 20  # letters of the learned text that are looked up together
EXAMPLES, EXAMPLE = 5, 60


def find_repeats(documents: Sequence[Sequence[str]], change: np.ndarray, learned: Iterable[str]) -> dict:
    """What a summary says of repeated paragraphs.

    documents: the texts of the scored tokens of each document, in reading order; change [N]: of all these tokens, in the same order.
    learned: the documents that were learned from.
    """
    pieces, owners, shown = _pieces(documents)
    hashes = [_hashes(piece) for piece in pieces]
    whole = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    found = np.zeros(len(whole), bool)
    for text in learned:
        for chunk in _chunks(_letters(text)):
            found |= np.isin(whole, _hashes(chunk))
    ends = np.cumsum([len(each) for each in hashes])
    shares = [float(part.mean()) for part in np.split(found, ends[:-1])] if hashes else []
    repeated = [index for index, share in enumerate(shares) if share >= REPEATED]
    inside = np.zeros(len(change), bool)
    for index in repeated:
        inside[owners[index]] = True
    return {
        "paragraphs": len(pieces),
        "repeated": len(repeated),
        "share_of_tokens": float(inside.mean()) if len(inside) else 0.0,
        "change_without": float(change[~inside].mean()) if not inside.all() else None,
        "examples": [shown[index] for index in repeated[:EXAMPLES]],
    }


def _pieces(documents: Sequence[Sequence[str]]) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Of each paragraph that is judged: its letters (code points), the tokens that they are of, and how it begins."""
    pieces, owners, shown, first = [], [], [], 0
    for texts in documents:
        begins = np.cumsum([0, *map(len, texts)])  # of tokens, in characters
        whole, start = "".join(texts), 0
        for end in [*(match.end() for match in re.finditer(r"\n\s*\n", whole)), len(whole)]:
            tokens = range(*np.searchsorted(begins[:-1], [start, end]).tolist())
            letters = [_letters(texts[token]) for token in tokens]
            of = np.repeat(np.arange(len(letters)), [len(each) for each in letters])
            points = np.concatenate(letters) if letters else np.zeros(0, np.uint32)
            for at in range(0, len(points), LONGEST):
                if len(points) - at >= SHORTEST:
                    pieces.append(points[at : at + LONGEST])
                    own = tokens[int(of[at]) : int(of[at : at + LONGEST][-1]) + 1]
                    owners.append(first + np.arange(own.start, own.stop))
                    shown.append(" ".join("".join(texts[token] for token in own).split())[:EXAMPLE])
            start = end
        first += len(texts)
    return pieces, owners, shown


def _letters(text: str) -> np.ndarray:
    """[n] code points without spaces and case."""
    kept = "".join(text.split()).casefold()
    return np.frombuffer(kept.encode("utf-32-le", "replace"), np.uint32)


def _hashes(points: np.ndarray) -> np.ndarray:
    """[n - SHINGLE + 1] a key each run of SHINGLE code points."""
    if len(points) < SHINGLE:
        return np.zeros(0, np.uint64)
    size = len(points) - SHINGLE + 1
    keys = np.zeros(size, np.uint64)
    for i in range(SHINGLE):
        keys = keys * FACTOR + points[i : i + size]
    return keys


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    for at in range(0, max(1, len(points) - SHINGLE + 1), CHUNK):
        yield points[at : at + CHUNK + SHINGLE - 1]
