"""One document: where its bytes are, and that they are UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from .builtin import BUILTINS
from .file_kinds import records_of, suffix_of, why_refused

if TYPE_CHECKING:
    from .records import Record, Records

CHUNK = 1 << 16  # bytes read at a time


class TextError(ValueError):
    """A text that can't be read or scored; the message names it."""


@dataclass(frozen=True)
class Source:
    """One text: `spec` as the user wrote it ("-", "builtin:NAME" or a path), or as `expand` names one of several documents.

    A file that ends in .gz is unpacked as it is read. `records` and `record`: the document is one line or row of a file.
    `gathered`: it was not named itself, but found in a directory or a file of several documents.
    """

    spec: str
    label: str | None = None  # its name in results, where that isn't the file's own
    gathered: bool = False
    records: Records | None = field(default=None, compare=False, repr=False)
    record: Record | None = None

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return "stdin" if self.spec == "-" else self.spec.removeprefix("builtin:") if self.builtin else os.path.basename(self.spec)

    @property
    def builtin(self) -> bool:
        return self.spec.startswith("builtin:")

    @property
    def path(self) -> str:
        """The file that holds it; for a pipe or a built-in text, its name."""
        return self.records.path if self.records else self.spec

    @property
    def seekable(self) -> bool:
        """False for pipes: they can be read once only."""
        return self.builtin or self.records is not None or (self.spec != "-" and stat.S_ISREG(os.stat(self.spec).st_mode))

    def open(self) -> BinaryIO:
        if self.spec == "-":
            return sys.stdin.buffer
        if self.builtin:
            return io.BytesIO(BUILTINS[self.spec.removeprefix("builtin:")]().encode())
        if self.records is not None:
            return io.BytesIO(self.records.read(self.record)[1].encode())
        try:
            return open_file(self.spec)
        except OSError as error:
            raise TextError(f"text {self.spec!r}: {error.strerror}") from None

    def content(self, limit: int | None = None) -> bytes:
        """All of it, or its first `limit` bytes."""
        parts, left = [], limit
        with contextlib.closing(self.open()) as file:
            for chunk in chunks(file, self.spec):
                parts.append(chunk if left is None else chunk[:left])
                left = None if left is None else left - len(parts[-1])
                if left == 0:
                    break
        return b"".join(parts)

    def document(self) -> tuple[str, str]:
        """(id, text): a line's "id" where it has one, else its name; of a file its own name."""
        if self.records is not None:
            found, text = self.records.read(self.record)
            return self.name if found is None else found, text
        decoder = Decoder(self.spec)
        return os.path.basename(self.name), decoder.feed(self.content(), final=True)

    def check(self) -> dict:
        """One cheap pass before any work: readable, not empty, UTF-8. Returns {"bytes", "sha256"} of the text; {} for a pipe."""
        if self.records is not None:
            return {"bytes": self.record.size, "sha256": self.record.sha256}
        self.check_name()
        if self.spec == "-" or not self.seekable:
            return {}
        digest, size = hashlib.sha256(), 0
        with contextlib.closing(self.open()) as file:
            for chunk in _checked(chunks(file, self.spec), self.spec):
                if not size and b"\0" in chunk[:4096]:
                    raise TextError(
                        f"text {self.spec!r} has zero bytes: it is binary, or UTF-16; convert it first, for example with "
                        "iconv -f UTF-16LE -t UTF-8"
                    )
                digest.update(chunk)
                size += len(chunk)
        if not size:
            raise TextError(f"text {self.spec!r} is empty")
        return {"bytes": size, "sha256": digest.hexdigest()}

    def check_name(self) -> None:
        """TextError where this can't be one text, by its name alone."""
        if self.builtin:
            if self.spec.removeprefix("builtin:") not in BUILTINS:
                raise TextError(
                    f"text {self.spec!r}: no such built-in text; there are " + ", ".join(f"builtin:{name}" for name in BUILTINS)
                )
        elif self.spec == "-":
            return
        elif os.path.isdir(self.spec):
            raise TextError(
                f"text {self.spec!r} is a directory; give files, for example {os.path.join(self.spec, '*.txt')}, or what "
                "dynadapt.text.expand makes of it"
            )
        elif not os.path.exists(self.spec):
            raise TextError(f"text {self.spec!r}: no such file")
        elif records_of(self.spec):
            raise TextError(f"text {self.spec!r} holds documents, not one text: dynadapt.text.expand gives them")
        elif reason := why_refused(self.spec):
            raise TextError(f"text {self.spec!r} is {reason}")


def open_file(path: str) -> BinaryIO:
    """A file's bytes, unpacked where its name ends in .gz; `chunks` reads it with errors that name it."""
    return gzip.open(path, "rb") if suffix_of(path)[1] else open(path, "rb", buffering=0)


@contextlib.contextmanager
def named_errors(spec: str) -> Iterator[None]:
    """What goes wrong in reading a file as a TextError that names it."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TextError(f"text {spec!r} is not a whole gzip file ({' '.join(str(error).split())}); pack it again") from None
    except OSError as error:
        raise TextError(f"text {spec!r}: {error.strerror or error}") from None


def chunks(file: BinaryIO, spec: str) -> Iterator[bytes]:
    read = getattr(file, "read1", file.read)  # a pipe hands over what it has, without waiting for a full chunk
    while True:
        with named_errors(spec):
            chunk = read(CHUNK)
        if not chunk:
            return
        yield chunk


def decoded(source: Source, start: int) -> Iterator[str]:
    """The text from byte `start` on, which begins a character."""
    file = source.open()
    try:
        if start:
            with named_errors(source.spec):
                file.seek(start)
        decoder = Decoder(source.spec, start)
        for chunk in chunks(file, source.spec):
            yield decoder.feed(chunk)
        yield decoder.feed(b"", final=True)
    finally:
        if file is not sys.stdin.buffer:
            file.close()


def _checked(pieces: Iterator[bytes], spec: str) -> Iterator[bytes]:
    """Passes the chunks on, after decoding them."""
    decoder = Decoder(spec)
    for chunk in pieces:
        decoder.feed(chunk)
        yield chunk
    decoder.feed(b"", final=True)


class Decoder:
    """Incremental strict UTF-8; an error names the text and the offset of the offending byte."""

    def __init__(self, spec: str, offset: int = 0):
        self.spec, self.offset = spec, offset  # offset: of the first byte not yet fed
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")

    def feed(self, data: bytes, final: bool = False) -> str:
        kept = len(self._decoder.getstate()[0])  # bytes of a character cut by the last chunk
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            at = self.offset - kept + error.start
            value = f"byte 0x{error.object[error.start]:02x}"
            raise TextError(
                f"text {self.spec!r} is not UTF-8: {value} at offset {at} ({error.reason}); "
                "convert it first, for example with iconv -t UTF-8"
            ) from None
        self.offset += len(data)
        return text
