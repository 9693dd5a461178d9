"""Windows set apart from a text, and the rest of it.

A window is drawn from each of as many equal parts of the text, at random within its part, so that windows are spread over the
text and over its documents. It begins at a line where it can. Of one that begins inside a document the first quarter, at least a segment, is learned
from and not counted: there the memory is empty or half full, as it never is in the middle of a document. Short documents follow one another
until the window is full. Only the windows are tokenised, so a text may be of any length.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dynadapt.runs.text import Source, TextError, TokenReader, expand

COUNTED = 1 << 22  # bytes up to which the tokens of a text are counted; beyond, its windows tell how many a byte has
LOOK = 4096  # bytes that are searched for a line to begin with
CHUNK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A run of one document. ids [n + 1], sizes [n]: bytes of the targets; the first `skip` targets are not counted."""

    source: int
    start: int
    stop: int  # bytes
    ids: np.ndarray
    sizes: np.ndarray
    skip: int


@dataclass(frozen=True)
class Window:
    pieces: tuple[Piece, ...]

    @property
    def learned(self) -> int:
        return sum(len(piece.sizes) for piece in self.pieces)

    @property
    def counted(self) -> int:
        return sum(len(piece.sizes) - piece.skip for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """Of the counted targets."""
        return sum(int(piece.sizes[piece.skip :].sum()) for piece in self.pieces)


@dataclass
class Text:
    """The documents that can be read, with their sizes in bytes and the tokens of all of them together."""

    sources: list[Source]
    sizes: list[int]
    tokens: int
    exact: bool  # whether tokens were counted, or estimated
    names: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.sizes)


def read_text(specs: tuple[str, ...], tokenizer, folder: Path, field: str = "text") -> Text:
    """Checks the documents and counts their tokens; a pipe is copied into `folder` first. Raises TextError naming what can't be read."""
    if not specs:
        raise TextError("text: none given; name files, - for standard input, or builtin:python-reference")
    if list(specs).count("-") > 1:
        raise TextError("text: - (standard input) can be given once only")
    sources, names = [], []
    for number, source in enumerate(expand(specs, field)):
        names.append(source.name)
        sources.append(source if source.check() else _copied(source, folder / f"pipe-{number}"))
    sizes = [source.check()["bytes"] for source in sources]
    if sum(sizes) <= COUNTED:
        return Text(sources, sizes, sum(_count(source, tokenizer) for source in sources), True, names)
    per_byte = _density(sources, sizes, tokenizer)
    return Text(sources, sizes, int(sum(sizes) * per_byte), False, names)


def _copied(source: Source, path: Path) -> Source:
    with open(path, "wb") as copy:
        file = sys.stdin.buffer if source.spec == "-" else source.open()
        shutil.copyfileobj(file, copy)
    return Source(str(path))


def _count(source: Source, tokenizer) -> int:
    reader = TokenReader(source, tokenizer)
    while len(reader.read(1 << 15)[0]):
        pass
    return reader.position


def _density(sources, sizes, tokenizer, samples: int = 16) -> float:
    """Tokens a byte, from places spread over the text."""
    total, ends, tokens, size = sum(sizes), np.cumsum(sizes), 0, 0
    for at in np.linspace(0, total, samples, endpoint=False).astype(np.int64):
        number = int(np.searchsorted(ends, at, side="right"))
        begin = _line(sources[number], int(at - (ends[number] - sizes[number])))
        _, widths = _reader(sources[number], tokenizer, begin).read(4096)
        tokens, size = tokens + len(widths), size + int(widths.sum())
    return tokens / max(size, 1)


def _reader(source: Source, tokenizer, byte: int) -> TokenReader:
    return TokenReader(source, tokenizer, {"byte": byte, "context": 0, "token": 0, "position": 0, "crc": 0})


def _line(source: Source, byte: int) -> int:
    """Where the next line begins, else the next word, else the next character."""
    if byte <= 0:
        return 0
    with source.open() as file:
        file.seek(byte)
        found = b""
        while len(found) < LOOK and (more := file.read(LOOK - len(found))):
            found += more
    for mark in (b"\n", b" "):
        at = found.find(mark)
        if 0 <= at < len(found) - 1:
            return byte + at + (mark == b"\n")  # a space belongs to the word behind it
    return byte + next((i for i, value in enumerate(found) if value & 0xC0 != 0x80), 0)


def spread(count: int) -> list[int]:
    """0..count-1 in an order of which every beginning is spread over the whole: bits of the numbers reversed."""
    bits = max(1, (count - 1).bit_length())
    return [number for number in (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)) if number < count]


def draw(text: Text, tokenizer, count: int, tokens: int, segment: int, seed: int, bos: int | None = None) -> list[Window]:
    """`bos`: the id that documents begin with, and windows too; None for none. At most `count` windows of about `tokens` targets, in spread order, none sharing a byte with another."""
    windows, free = [], 0  # free: first byte, over all documents, behind the windows so far
    generator = np.random.default_rng(seed)
    need = int(tokens * text.bytes / max(text.tokens, 1))
    for part in range(count):
        start, stop = (text.bytes * part // count, text.bytes * (part + 1) // count)
        begin = max(free, start + int(generator.integers(max(1, stop - start - need + 1))))
        window, free = _window(text, tokenizer, begin, tokens, segment, bos)
        if window is not None:
            windows.append(window)
    return [windows[i] for i in spread(len(windows))]


def _window(text: Text, tokenizer, begin: int, tokens: int, segment: int, bos: int | None) -> tuple[Window | None, int]:
    """The window that begins at this byte of all documents together, and the first byte behind it."""
    warm = segment * max(1, tokens // segment // 4)
    ends, pieces, left, free = np.cumsum(text.sizes), [], tokens, begin
    number = int(np.searchsorted(ends, begin, side="right"))
    while number < len(text.sources) and left >= min(segment, tokens) // 2 + 1:
        first = int(ends[number]) - text.sizes[number]
        start = _line(text.sources[number], max(0, begin - first))
        ids, sizes = (
            _reader(text.sources[number], tokenizer, start).read(left + 1) if start < text.sizes[number] else (np.zeros(0, np.int64),) * 2
        )
        stop = start + int(sizes.sum())
        if bos is not None and len(ids) and ids[0] != bos:
            ids, sizes = np.concatenate([[bos], ids]), np.concatenate([[0], sizes])
        skip = min(warm, max(len(ids) - 1, 0)) if start else 0
        if len(ids) - 1 > skip:
            pieces.append(Piece(number, start, stop, ids, sizes[1:], skip))
            left, free = left - (len(ids) - 1), first + stop
        number, begin = number + 1, int(ends[number])
    return (Window(tuple(pieces)) if pieces else None), free


def write_rest(text: Text, windows: list[Window], folder: Path) -> list[str]:
    """The text without the windows, each document a file of `folder`; returns their names in reading order. Documents of which nothing is left have none."""
    folder.mkdir(parents=True)
    names, taken = [], [(piece.source, piece.start, piece.stop) for window in windows for piece in window.pieces]
    width = max(4, len(str(len(text.sources))))
    for number, source in enumerate(text.sources):
        cuts = sorted((start, stop) for of, start, stop in taken if of == number)
        name = f"{number:0{width}d}-{_plain(text.names[number])}.txt"
        with source.open() as file, open(folder / name, "wb") as out:
            written = _copy_without(file, out, cuts, text.sizes[number])
        if written:
            names.append(name)
        else:
            (folder / name).unlink()
    return names


def _copy_without(file, out, cuts, size: int) -> bool:
    """Whether more than blanks were left."""
    at, solid = 0, 0 if cuts else 17  # of a document without windows all is left
    for start, stop in cuts + [(size, size)]:
        while at < start and (data := file.read(min(CHUNK, start - at))):
            out.write(data)
            solid += len(data.strip())
            at += len(data)
        while at < stop and (data := file.read(min(CHUNK, stop - at))):
            at += len(data)
    return solid > 16  # so that it has the two tokens that an evaluation asks for


def _plain(name: str) -> str:
    return ("".join(c if c.isalnum() or c in "._-" else "_" for c in name).removesuffix(".txt") or "text")[:80]
