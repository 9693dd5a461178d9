"""The documents of a diagnosis, their text and tokens, and the two normal forms of the controls."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynadapt.runs.text import Source, TextError, TokenReader, expand

TITLES = {"newlines": "the lines of each paragraph joined", "packing": "all documents in one stream, a blank line between them"}
BYTES_PER_TOKEN = 16  # more than any natural text has: how much of a text the first N tokens can need


def gather(specs: Sequence[str], field: str = "text") -> list[Source]:
    """The documents of texts that are read more than once, all of them checked; TextError for a pipe."""
    sources = expand(specs, field)
    for source in sources:
        if not source.check():
            raise TextError(f"text {source.spec!r} is a pipe, which can be read only once; give a file")
    return sources


def read_text(source: Source, limit: int | None = None) -> str:
    """The text, or about its first `limit` bytes."""
    return source.content(limit).decode("utf-8", "ignore")


def read_tokens(texts: list[Source], tokenizer, limit: int | None) -> np.ndarray:
    """The first `limit` tokens of the texts one after the other, [N] int64."""
    parts, left = [], limit
    for source in texts:
        if left is not None and left <= 0:
            break
        reader = TokenReader(source, tokenizer)
        while (left is None or left > 0) and len(ids := reader.read(1 << 15 if left is None else min(left, 1 << 15))[0]):
            parts.append(ids)
            left = None if left is None else left - len(ids)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


# --------------------------------------------------------------------------------------------------------------- controls


def joined_lines(text: str) -> str:
    """Paragraphs of one line each, a blank line between them: no hard wraps, no indentation, no trailing blanks."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip())
    return "\n\n".join(" ".join(line.strip() for line in paragraph.split("\n")) for paragraph in paragraphs) + "\n"


def write_control(name: str, texts: list[Source], folder: Path, tokens: int | None) -> list[str]:
    """The texts in a normal form, a line each of a .jsonl file in `folder`: [its path], or [] when they have that form already."""
    contents = [read_text(source, tokens and tokens * BYTES_PER_TOKEN) for source in texts]
    if name == "newlines":
        changed = [joined_lines(text) for text in contents]
    else:
        changed = ["\n\n".join(text.strip("\n") for text in contents) + "\n"] if len(contents) > 1 else contents
    if changed == contents:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in changed if len(text.strip()) > 1), "utf-8")
    return [str(path)]
