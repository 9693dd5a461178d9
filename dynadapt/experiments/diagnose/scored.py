"""The same tokens, scored by two models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynadapt.runs.document_streams import first_positions
from dynadapt.runs.rundir import RunError, check_finished, read_json
from dynadapt.runs.text import Source, TokenReader


@dataclass(frozen=True)
class Scored:
    """N scored tokens, in reading order; NLLs in nats. The first token of a document is not scored."""

    tokens: np.ndarray  # [N] int64, the token that was predicted
    before: np.ndarray  # [N] float64
    after: np.ndarray  # [N] float64
    document: np.ndarray  # [N] index into names
    position: np.ndarray  # [N] how many tokens of its document stand before the token, one that begins it and is no text included
    names: tuple[str, ...]
    segment: int = 512  # tokens of a window: position 1 of each sees one token

    @property
    def change(self) -> np.ndarray:
        """[N] after - before: positive where the second model is worse."""
        return self.after - self.before


def read_scored(before: Path, after: Path, texts: list[Source], tokenizer, segment: int) -> Scored:
    """Joins the scores.npy of two runs over the same texts with the tokens they scored."""
    for path in (before, after):
        check_finished(path, read_json(path / "summary.json"))
    first, second = (np.load(path / "scores.npy") for path in (before, after))
    if len(first) != len(second) or any((first[name] != second[name]).any() for name in ("document", "position")):
        raise RunError(f"{before} and {after} hold scores of different tokens; choose another --out")
    tokens = np.zeros(len(first), np.int64)
    order = np.argsort(first["document"], kind="stable")
    numbers, begins = np.unique(first["document"][order], return_index=True)
    for number, chosen in zip(numbers, np.split(order, begins[1:])):
        positions = first["position"][chosen]
        ids, _ = TokenReader(texts[number], tokenizer).read(int(positions.max()) + 1)
        if len(ids) <= positions.max():
            raise RunError(f"text {texts[number].spec!r} has changed since it was scored in {before}; choose another --out")
        tokens[chosen] = ids[positions]
    begun = 1 - first_positions(first["document"], first["position"])  # 1: its document begins with a token of no text
    return Scored(
        tokens,
        first["nll"].astype(np.float64),
        second["nll"].astype(np.float64),
        first["document"].astype(np.int64),
        first["position"].astype(np.int64) + begun,
        tuple(source.name for source in texts),
        segment,
    )
