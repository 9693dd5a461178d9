"""Streamed text to tokens, in flat memory and with exactly the ids of encoding the whole text at once.

A source (a document that dynadapt/runs/texts found: a file, a line of one, a pipe, a built-in text) is read in bounded chunks, decoded
as UTF-8 incrementally and tokenised in windows.
Two windows meet at a seam: a token boundary c, taken from the offsets, with these two properties checked before it is used:
  left   encoding again from a little before c gives the same tokens from c to the end of the window;
  right  encoding with half of the look-ahead gives the same tokens up to c.
If no candidate holds, earlier ones are tried, and then the window grows. What is before a verified seam is final.

Every token carries the number of UTF-8 bytes it covers, so that bits per byte is exact. The bytes of a character that
is spread over several tokens are counted at the last of them.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from .texts.builtin import BUILTINS
from .texts.expanding import expand, inputs
from .texts.source import Decoder, Source, TextError, decoded

__all__ = [
    "BUILTINS",
    "Decoder",
    "Document",
    "Seam",
    "Source",
    "TextError",
    "TokenReader",
    "expand",
    "inputs",
    "split",
    "streaming_tokenizer",
]

WINDOW = 1 << 15  # characters encoded at a time
LOOKAHEAD = 2048  # characters that a seam must see to its right
CONTEXT = 256  # characters encoded again to the left of a seam
CANDIDATES = (0, 1, 2, 3, 5, 8, 13, 21, 34, 89, 233, 610, 1597)  # which boundaries to try, counted back from the last


# ------------------------------------------------------------------------------------------------------------- tokenising


def streaming_tokenizer(tokenizer) -> Tokenizer:
    """A copy that adds no special tokens, cuts and pads nothing, and reports untrimmed offsets.

    ModelError if its ids would be random, or its special tokens be split.
    """
    inner = tokenizer
    while not isinstance(inner, Tokenizer):
        inner = next(
            (
                getattr(inner, name)
                for name in ("backend", "backend_tokenizer", "tokenizer", "_tokenizer")
                if getattr(inner, name, None) is not None
            ),
            None,
        )
        if inner is None:
            raise TypeError(f"tokenizer: {type(tokenizer).__name__} holds no tokenizers.Tokenizer")
    from dynadapt.model.tokenizer import check_backend  # here: it takes torch, without which texts can be looked at

    check_backend(inner, "tokenizer")
    found = Tokenizer.from_str(inner.to_str())
    found.post_processor = None
    found.no_truncation()
    found.no_padding()
    return found


def _byte_ends(text: str) -> np.ndarray:
    """[len(text) + 1]: UTF-8 bytes before each character."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points > 0x7F) + (points > 0x7FF).astype(np.int64) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths)])


class _Encoded:
    """ids [n], ends [n] (characters up to which tokens 0..i reach together) and boundary [n] (token i ends where i + 1 may start)."""

    def __init__(self, tokenizer: Tokenizer, text: str):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        self.ids = np.asarray(encoding.ids, dtype=np.int64)
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        self.ends = np.maximum.accumulate(offsets[:, 1]) if len(offsets) else np.zeros(0, np.int64)
        starts = np.append(offsets[1:, 0], len(text)) if len(offsets) else np.zeros(0, np.int64)
        self.boundary = starts >= self.ends

    def after(self, position: int) -> int | None:
        """How many tokens lie before the boundary at this character; None if it falls inside a token."""
        if position == 0:
            return 0
        count = int(np.searchsorted(self.ends, position, side="right"))
        return count if count and self.ends[count - 1] == position and self.boundary[count - 1] else None

    def byte_lengths(self, text: str, first: int, stop: int, start: int, last: bool) -> np.ndarray:
        """Bytes covered by tokens first..stop-1, the first of which begins at character `start`; the text's `last` token takes the rest."""
        ends = self.ends[first:stop].copy()
        if not len(ends):
            return np.zeros(0, np.int64)
        inside = np.flatnonzero(~self.boundary[first : stop - 1])  # a character over several tokens: all but the last stop before it
        ends[inside] = np.maximum(ends[inside] - 1, start)
        if last:
            ends[-1] = len(text)  # what the normaliser dropped or joined
        ends = np.maximum.accumulate(ends)
        return np.diff(_byte_ends(text)[np.concatenate([[start], ends])])


@dataclass(frozen=True)
class Seam:
    """Where a reader may start: `byte` is where its window begins, `context` characters before token number `token`."""

    byte: int = 0
    context: int = 0
    token: int = 0


class TokenReader:
    """Tokens of one source in order. Memory does not grow with the text.

    read(n) -> (ids [m], bytes [m]) with m <= n, m < n only at the end.   position: tokens read so far.
    state() says where to go on; TokenReader(source, tokenizer, state=...) goes on there, with the same ids.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, state: dict | None = None):
        self.source, self.tokenizer = source, tokenizer
        state = state or {"byte": 0, "context": 0, "token": 0, "position": 0, "crc": 0}
        seam = Seam(state["byte"], state["context"], state["token"]) if source.seekable else Seam()
        self.position, self.crc = seam.token, 0
        self._blocks: deque[tuple[Seam, np.ndarray, np.ndarray]] = deque()
        self._used = 0  # tokens of the first block already read
        self._next, self._windows = seam, self._tokenise(seam)
        if state["position"] > self.position:
            self._skip(state)
        self.crc = state["crc"]

    def _skip(self, state: dict) -> None:
        left = state["position"] - self.position
        while left:
            ids, _ = self.read(min(left, WINDOW))
            if not len(ids):
                raise TextError(f"text {self.source.spec!r} ends before token {state['position']}, where the run stopped")
            left -= len(ids)
        if not self.source.seekable and self.crc != state["crc"]:
            raise TextError(f"text {self.source.spec!r} is not the one the run began with: its first {self.position} tokens differ")

    def read(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        ids, sizes = [], []
        while count:
            if not self._blocks and not self._fill():
                break
            _, block_ids, block_sizes = self._blocks[0]
            part = slice(self._used, min(self._used + count, len(block_ids)))
            ids.append(block_ids[part])
            sizes.append(block_sizes[part])
            count -= part.stop - part.start
            self._used = part.stop
            if self._used == len(block_ids):
                self._blocks.popleft()
                self._used = 0
        ids = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        self.position += len(ids)
        self.crc = zlib.crc32(ids.astype("<i4").tobytes(), self.crc)
        return ids, np.concatenate(sizes) if sizes else np.zeros(0, np.int64)

    @property
    def ended(self) -> bool:
        return not self._blocks and not self._fill()

    def state(self) -> dict:
        seam = self._blocks[0][0] if self._blocks else self._next
        return {"byte": seam.byte, "context": seam.context, "token": seam.token, "position": self.position, "crc": self.crc}

    def _fill(self) -> bool:
        for block in self._windows:
            if len(block[1]):
                self._blocks.append(block)
                return True
        return False

    def _tokenise(self, seam: Seam) -> Iterator[tuple[Seam, np.ndarray, np.ndarray]]:
        """Yields (seam where the block starts, ids, bytes) for each window; self._next is the seam after the last one."""
        pieces = decoded(self.source, seam.byte)
        text, ended, want = "", False, WINDOW
        while True:
            gathered = [text]
            size = len(text)
            while size < want and not ended:
                piece = next(pieces, None)
                ended = piece is None
                gathered.append(piece or "")
                size += len(gathered[-1])
            text = "".join(gathered)
            encoded = _Encoded(self.tokenizer, text)
            first = encoded.after(seam.context)
            if first is None:
                raise TextError(
                    f"text {self.source.spec!r}: this tokenizer can't be streamed: the tokens before byte {seam.byte} "
                    f"depend on text more than {LOOKAHEAD} characters later"
                )
            stop = len(encoded.ids) if ended else _find_seam(self.tokenizer, text, encoded, seam.context)
            if stop is None:
                want = 2 * len(text)
                continue
            block = encoded.ids[first:stop], encoded.byte_lengths(text, first, stop, seam.context, ended)
            cut = len(text) if ended else int(encoded.ends[stop - 1])
            begin = max(0, cut - CONTEXT)
            after = Seam(seam.byte + len(text[:begin].encode()), cut - begin, seam.token + stop - first)
            self._next = after
            yield seam, *block
            if ended:
                return
            seam, text, want = after, text[begin:], WINDOW


def _find_seam(tokenizer: Tokenizer, text: str, encoded: _Encoded, context: int) -> int | None:
    """The number of tokens before the last seam that holds in this window, or None."""
    inside = np.flatnonzero(encoded.boundary & (encoded.ends > context) & (encoded.ends <= len(text) - LOOKAHEAD))
    for back in CANDIDATES:
        if back >= len(inside):
            return None
        token = int(inside[-1 - back])
        if _holds(tokenizer, text, encoded, token + 1):
            return token + 1
    return None


def _holds(tokenizer: Tokenizer, text: str, encoded: _Encoded, stop: int) -> bool:
    cut = int(encoded.ends[stop - 1])
    begin = max(0, cut - CONTEXT)
    again = _Encoded(tokenizer, text[begin:])
    left = again.after(cut - begin)
    if left is None or not np.array_equal(again.ids[left:], encoded.ids[stop:]):
        return False
    nearer = _Encoded(tokenizer, text[begin : cut + LOOKAHEAD // 2])
    right = nearer.after(cut - begin)
    return right == left and np.array_equal(nearer.ids[:right], again.ids[:left])


# -------------------------------------------------------------------------------------------------------------- documents


@dataclass(frozen=True)
class Document:
    """A source, or the tokens start..stop-1 of one; `state` is a reader's state at or before `start`, `byte` where that token begins."""

    source: Source
    start: int = 0
    stop: int | None = None
    state: dict | None = None
    byte: int = 0

    @property
    def name(self) -> str:
        return self.source.name if self.stop is None else f"{self.source.name}[{self.start}:{self.stop}]"


def split(source: Source, tokenizer: Tokenizer, parts: int, limit: int | None = None) -> list[Document]:
    """Cuts the first `limit` tokens of a source into contiguous parts of equal length (to one token), in one counting pass."""
    if not source.seekable:
        raise TextError(f"text {source.spec!r} is a pipe and can be read only once; splitting needs a file")
    reader, seams, ends = TokenReader(source, tokenizer), [], [np.zeros(1, np.int64)]
    while limit is None or reader.position < limit:
        seams.append(reader.state())
        left = WINDOW if limit is None else min(WINDOW, limit - reader.position)
        ids, sizes = reader.read(left)
        if not len(ids):
            break
        ends.append(ends[-1][-1] + np.cumsum(sizes))
    begins = np.concatenate(ends)  # byte at which each token begins
    total = reader.position
    if total < 2 * parts:
        raise TextError(
            f"text {source.spec!r} has {total} token{'s' * (total != 1)}: too short to split into {parts} parts of at least two tokens"
        )
    documents = []
    for part in range(parts):
        start, stop = total * part // parts, total * (part + 1) // parts
        seam = max((seam for seam in seams if seam["position"] <= start), key=lambda seam: seam["position"])
        documents.append(Document(source, start, stop, {**seam, "position": start}, int(begins[start])))
    return documents
