"""Texts as the command line names them to files of one document each, and the two normal forms of the controls."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dynadapt.experiments.corpus_read import CorpusError, read_lines
from dynadapt.text import Source, TextError, TokenReader

TITLES = {"newlines": "the lines of each paragraph joined", "packing": "all documents in one stream, a blank line between them"}
BYTES_PER_TOKEN = 16         # more than any natural text has: how much of a text the first N tokens can need


def gather(specs: tuple[str, ...], folder: Path | None) -> list[str]:
    """Files as they are; of a directory every file in it, by name; of a .jsonl file the "text" of each line, written to `folder`.

    Without a folder nothing is written and a .jsonl file, checked too, stands for its lines.
    Raises TextError, naming it, for what does not exist, holds no text, or is a line without "text".
    """
    found = []
    for spec in specs:
        path = Path(spec)
        if spec.startswith("builtin:"):
            found.append(spec)
        elif path.is_dir():
            found += _of_directory(path)
        elif path.suffix == ".jsonl" and path.is_file():
            found += _of_lines(path, folder)
        else:
            found.append(spec)
    for spec in found:
        if not Source(spec).check():
            raise TextError(f"text {spec!r} is a pipe, which can be read only once; give a file")
    return found


def _of_directory(path: Path) -> list[str]:
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".") and file.stat().st_size]
    if not files:
        raise TextError(f"text {str(path)!r}: a directory without text files")
    return sorted(map(str, files))


def _of_lines(path: Path, folder: Path | None) -> list[str]:
    try:
        texts = [text for _, text in read_lines(path)]
    except CorpusError as error:
        raise TextError(f"text {error}") from None
    if not texts:
        raise TextError(f"text {str(path)!r} is empty")
    return [str(path)] if folder is None else _write(texts, folder / path.stem)


def _write(texts: list[str], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts):
        file.write_bytes(text.encode())
    return [str(file) for file in files]


def read_text(spec: str, limit: int | None = None) -> str:
    """The text, or about its first `limit` bytes."""
    with Source(spec).open() as file:
        return file.read(-1 if limit is None else limit).decode("utf-8", "ignore")


def read_tokens(texts: list[str], tokenizer, limit: int | None) -> np.ndarray:
    """The first `limit` tokens of the texts one after the other, [N] int64."""
    parts, left = [], limit
    for spec in texts:
        reader = TokenReader(Source(spec), tokenizer)
        while (left is None or left > 0) and len(ids := reader.read(1 << 15 if left is None else min(left, 1 << 15))[0]):
            parts.append(ids)
            left = None if left is None else left - len(ids)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


# --------------------------------------------------------------------------------------------------------------- controls

def joined_lines(text: str) -> str:
    """Paragraphs of one line each, a blank line between them: no hard wraps, no indentation, no trailing blanks."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip())
    return "\n\n".join(" ".join(line.strip() for line in paragraph.split("\n")) for paragraph in paragraphs) + "\n"


def write_control(name: str, texts: list[str], folder: Path, tokens: int | None) -> list[str]:
    """The texts in a normal form, as files in `folder`; [] when they have it already."""
    contents = [read_text(spec, tokens and tokens * BYTES_PER_TOKEN) for spec in texts]
    if name == "newlines":
        changed = [joined_lines(text) for text in contents]
    else:
        changed = ["\n\n".join(text.strip("\n") for text in contents) + "\n"] if len(contents) > 1 else contents
    if changed == contents:
        return []
    return _write([text for text in changed if len(text.strip()) > 1], folder)
