"""Documents into the engine's streams, a segment at a time: refilled as documents end, and able to go on from a saved state."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from .text import Document, TextError, TokenReader


@dataclass
class Segment:
    """What one step works on. S streams, T segment."""

    tokens: np.ndarray  # [S, T + 1] int64; zeros beyond lengths
    lengths: np.ndarray  # [S] scored targets
    ends: np.ndarray  # [S, T + 1] byte of its text at which each token ends; entry 0: where the first target begins
    documents: list[int | None]  # [S] which document each stream reads
    positions: list[int]  # [S] position in its document of the first scored target
    entered: list[int] = field(default_factory=list)  # streams that a new document has just entered

    @property
    def sizes(self) -> np.ndarray:
        """[S] bytes of the scored targets."""
        return self.ends[np.arange(len(self.lengths)), self.lengths] - self.ends[:, 0]


class _Slot:
    def __init__(self):
        self.document: int | None = None
        self.reader: TokenReader | None = None
        self.start = 0  # reader position where the document begins
        self.last: int | None = None  # the last token read: the next segment's first input
        self.byte = 0  # where in its text the reading stands


class Feed:
    """Yields segments until the documents, or the first `limit` tokens of them in reading order, are used up.

    The first token of a document has nothing before it and is not scored; one that has no other is left out where it was gathered
    (from a directory or lines), else refused. `begin`: the id (``<bos>``) that stands before each document: then its first token is scored, unless it
    is that id itself. No byte of the text is its, and no `limit` counts it.
    """

    def __init__(
        self,
        documents: list[Document],
        tokenizer: Tokenizer,
        streams: int,
        segment: int,
        limit: int | None,
        state: dict | None = None,
        begin: int | None = None,
    ):
        self.documents, self.tokenizer, self.segment, self.limit, self.begin = documents, tokenizer, segment, limit, begin
        self.least = 2 - (begin is not None)  # tokens of which something can be scored
        self.slots = [_Slot() for _ in range(streams)]
        self.queued = 0  # the next document to enter a slot
        self.read = 0  # tokens read so far
        self.read_bytes = 0  # and the bytes that they cover, those of tokens that are not scored included
        self.short = 0  # documents left out
        if state:
            self._restore(state)

    def next(self) -> Segment | None:
        streams, length = len(self.slots), self.segment
        segment = Segment(
            np.zeros((streams, length + 1), np.int64),
            np.zeros(streams, np.int64),
            np.zeros((streams, length + 1), np.int64),
            [None] * streams,
            [0] * streams,
        )
        for stream, slot in enumerate(self.slots):
            self._fill(segment, stream, slot)
        return segment if segment.lengths.any() else None

    def _fill(self, segment: Segment, stream: int, slot: _Slot) -> None:
        while True:
            if slot.reader is None and not self._enter(slot):
                return
            entered = slot.last is None
            ids, sizes = self._take(slot, self.segment + (entered and self.begin is None))
            if entered and len(ids) and self.begin is not None:
                if ids[0] != self.begin:
                    slot.last = self.begin
                else:  # the text has it already
                    more = self._take(slot, 1)
                    ids, sizes = np.concatenate([ids, more[0]]), np.concatenate([sizes, more[1]])
            first = slot.last is None
            if len(ids) - first >= 1:
                break
            if entered and (self.limit is None or self.read < self.limit):
                if not self.documents[slot.document].source.gathered:
                    raise too_short(self.documents[slot.document], len(ids))
                self.short += 1
            slot.reader = slot.document = slot.last = None
        if entered:
            segment.entered.append(stream)
        row = ids if first else np.concatenate([[slot.last], ids])
        segment.tokens[stream, : len(row)] = row
        segment.lengths[stream] = len(row) - 1
        ends = slot.byte + np.cumsum(sizes)
        segment.ends[stream, : len(row)] = ends if first else np.concatenate([[slot.byte], ends])
        slot.byte = int(ends[-1])
        segment.documents[stream] = slot.document
        segment.positions[stream] = slot.reader.position - slot.start - len(row) + 1
        slot.last = int(ids[-1])

    def _enter(self, slot: _Slot) -> bool:
        if self.queued == len(self.documents) or (self.limit is not None and self.limit - self.read < self.least):
            return False
        document = self.documents[self.queued]
        slot.document, slot.last, slot.byte = self.queued, None, document.byte
        slot.reader, slot.start = TokenReader(document.source, self.tokenizer, state=document.state), document.start
        self.queued += 1
        return True

    def _take(self, slot: _Slot, count: int) -> tuple[np.ndarray, np.ndarray]:
        stop = self.documents[slot.document].stop
        if stop is not None:
            count = min(count, stop - slot.reader.position)
        if self.limit is not None:
            count = min(count, self.limit - self.read)
        ids, sizes = slot.reader.read(count)
        self.read += len(ids)
        self.read_bytes += int(sizes.sum())
        return ids, sizes

    def state(self) -> dict:
        slots = [
            None
            if slot.reader is None
            else {"document": slot.document, "reader": slot.reader.state(), "last": slot.last, "byte": slot.byte}
            for slot in self.slots
        ]
        return {"queued": self.queued, "read": self.read, "bytes": self.read_bytes, "short": self.short, "slots": slots}

    def _restore(self, state: dict) -> None:
        self.queued, self.read, self.short = state["queued"], state["read"], state.get("short", 0)
        self.read_bytes = state.get("bytes", 0)  # absent in older states: only progress is told by it
        for slot, saved in zip(self.slots, state["slots"], strict=True):
            if saved is not None:
                document = self.documents[saved["document"]]
                slot.document, slot.last, slot.start = saved["document"], saved["last"], document.start
                slot.byte = saved.get("byte", 0)  # absent in states of versions whose scores say nothing of bytes
                slot.reader = TokenReader(document.source, self.tokenizer, state=saved["reader"])


def too_short(document: Document, tokens: int) -> TextError:
    return TextError(
        f"text {document.source.spec!r} has {tokens} token{'s' * (tokens != 1)}: too short to score anything "
        "(the first token is not scored, so at least 2 are needed)"
    )


def check_lengths(documents: list[Document], tokenizer: Tokenizer, begin: int | None = None) -> None:
    """Refuses documents of fewer than two tokens (one where `begin` stands before them) before any work, except pipes, which can't be looked into, and what was found in
    directories or lines, where a short one is left out as it comes."""
    for document in documents:
        if not document.source.gathered and document.source.seekable and document.stop is None:
            ids, _ = TokenReader(document.source, tokenizer).read(2)
            if len(ids) < 2 and (begin is None or not len(ids) or ids[0] == begin):
                raise too_short(document, len(ids))


def first_positions(document: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[N] of each scored token, where the first one of its document stands: 0 where a token of no text begins it, else 1."""
    begun = np.unique(document[position == 0])
    return np.where(np.isin(document, begun), 0, 1)
