"""Files of several documents: a line of JSON, an item of a JSON array or a row of Parquet each.

A file is gone through once, every document checked, and where each is is kept: its number, its size and its sha256, not its text.
Reading one again compares it with that. A line of a plain file is read at its offset; packed lines and rows are read forwards, and
from the start (or the row group) again for one that lies before: reading in order costs one pass.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from .file_kinds import records_of, suffix_of
from .source import TextError, named_errors, open_file

BATCH = 256  # rows of Parquet held at a time
SHOWN = 8  # keys or columns that an error lists


@dataclass(frozen=True, slots=True)
class Record:
    """One document of a file: `number` is that of its line, item or row, from 1; `offset` and `length` those of its line, in bytes."""

    number: int
    size: int  # UTF-8 bytes of the text
    sha256: str
    offset: int = 0
    length: int = 0


Item = tuple[int, int, int, "str | None", str]  # number, offset, length, id, text


class Records:
    """The documents of one file. TextError names the file, and the line, item or row that can't be a document."""

    unit = "line"

    def __init__(self, path: str, field: str):
        self.path, self.field = path, field
        self.blank = 0  # documents of nothing but spaces, which are passed over
        self._forward: Iterator[Item] | None = None
        self._reached = 0

    @cached_property
    def entries(self) -> list[Record]:
        found = []
        for number, offset, length, _, text in self.items():
            if not text or text.isspace():
                self.blank += 1
                continue
            content = text.encode()
            found.append(Record(number, len(content), hashlib.sha256(content).hexdigest(), offset, length))
        if not found:
            raise TextError(f"text {self.path!r} is empty" + f": all of its {self.blank} documents are" * bool(self.blank))
        return found

    def items(self, number: int = 1) -> Iterator[Item]:
        """The file's documents, from one at or before `number` on."""
        raise NotImplementedError

    def read(self, record: Record) -> tuple[str | None, str]:
        """(id or None, text) of a document."""
        found, text = self._find(record)
        content = text.encode()
        if len(content) != record.size or hashlib.sha256(content).hexdigest() != record.sha256:
            raise self.changed(record)
        return found, text

    def _find(self, record: Record) -> tuple[str | None, str]:
        if self._forward is None or record.number <= self._reached:
            self._forward = self.items(record.number)
        for number, _, _, found, text in self._forward:
            self._reached = number
            if number == record.number:
                return found, text
        self._forward = None
        raise self.changed(record)

    def changed(self, record: Record) -> TextError:
        return TextError(f"text {self.path}: {self.unit} {record.number} has changed since it was first read")

    def error(self, number: int, what: str) -> TextError:
        return TextError(f"text {self.path}: {self.unit} {number} {what}")

    def text_of(self, number: int, content) -> tuple[str | None, str]:
        """(id or None, text) of parsed JSON."""
        if isinstance(content, dict):
            if self.field not in content:
                keys = ", ".join(map(str, list(content)[:SHOWN])) or "none"
                raise self.error(number, f'has no "{self.field}"; its keys are {keys}: name the one that is the text with --field')
            text, found = content[self.field], content.get("id")
        else:
            text, found = content if self.unit == "item" else None, None
            if not isinstance(text, str):
                raise self.error(number, f'has no "{self.field}": it is {_shown(content)}, not an object')
        if not isinstance(text, str):
            raise self.error(number, f'has no "{self.field}" that is a string: it is {_shown(text)}')
        return None if found is None else str(found), self.whole(number, text)

    def whole(self, number: int, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(number, f"has half of a surrogate pair at character {error.start} of its text") from None
        return text


def _shown(value) -> str:
    said = json.dumps(value, ensure_ascii=True)
    return said if len(said) <= 40 else said[:37] + "..."


class JsonLines(Records):
    """Each line an object with the field. Empty lines are passed over."""

    def items(self, number: int = 1) -> Iterator[Item]:
        with named_errors(self.path), io.BufferedReader(open_file(self.path), 1 << 20) as lines:
            yield from self._parsed(lines)

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[Item]:
        offset = 0
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, offset, len(line), *self.text_of(number, self._json(number, line))
            offset += len(line)

    def _json(self, number: int, line: bytes):
        try:
            return json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise self.error(number, f"is not UTF-8 at byte {error.start}") from None
        except (ValueError, RecursionError):
            raise self.error(number, "is not JSON") from None

    def _find(self, record: Record) -> tuple[str | None, str]:
        if suffix_of(self.path)[1]:
            return super()._find(record)
        with named_errors(self.path), open_file(self.path) as file:
            file.seek(record.offset)
            line = file.read(record.length)
        try:
            return self.text_of(record.number, self._json(record.number, line))
        except TextError:
            raise self.changed(record) from None


class JsonArray(Records):
    """A .json file that is an array of strings, or of objects with the field. It is read whole: JSON can't be read in parts."""

    unit = "item"

    @cached_property
    def _content(self) -> list:
        with named_errors(self.path), open_file(self.path) as file:
            raw = file.read()
        try:
            content = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise TextError(
                f"text {self.path!r} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason})"
            ) from None
        except (ValueError, RecursionError) as error:
            if raw.strip() and str(error).startswith("Extra data"):
                raise TextError(f"text {self.path!r} holds several JSON values: if each line is a document, name it .jsonl") from None
            raise TextError(f"text {self.path!r} is empty" if not raw.strip() else f"text {self.path!r} is not JSON ({error})") from None
        if not isinstance(content, list):
            kind = "one JSON object" if isinstance(content, dict) else f"the JSON value {_shown(content)}"
            raise TextError(
                f'text {self.path!r} holds {kind}, not documents: give an array of strings or of objects with "{self.field}", '
                f"or a .jsonl file with an object a line; to score its characters as they are, pipe it: --text - < {self.path}"
            )
        return content

    def items(self, number: int = 1) -> Iterator[Item]:
        for each in range(number, len(self._content) + 1):
            yield each, 0, 0, *self.text_of(each, self._content[each - 1])


class ParquetRows(Records):
    """Each row's value of one column of strings. Needs pyarrow."""

    unit = "row"

    def items(self, number: int = 1) -> Iterator[Item]:
        file = self._opened()
        try:
            groups, before = list(range(file.num_row_groups)), 0
            while groups and before + (rows := file.metadata.row_group(groups[0]).num_rows) < number:
                before += rows
                groups.pop(0)
            for batch in self._batches(file, groups):
                for row, text in enumerate(batch.column(0).to_pylist(), before + 1):
                    if not isinstance(text, str):
                        raise self.error(
                            row, f'has no "{self.field}" that is a string: it is {"null" if text is None else repr(text)[:40]}'
                        )
                    yield row, 0, 0, None, self.whole(row, text)
                before += len(batch)
        finally:
            file.close()

    def _opened(self):
        try:
            from pyarrow import parquet
        except ImportError:
            raise TextError(f"text {self.path!r}: Parquet is read with pyarrow, which is not installed: pip install pyarrow") from None
        from pyarrow import ArrowException

        try:
            file = parquet.ParquetFile(self.path)
        except (OSError, ArrowException) as error:
            raise TextError(f"text {self.path!r} can't be read as Parquet: {' '.join(str(error).split())}") from None
        names = file.schema_arrow.names
        if self.field not in names:
            file.close()
            raise TextError(
                f'text {self.path!r} has no column "{self.field}"; its columns are {", ".join(names[:SHOWN])}: name the one that is '
                "the text with --field"
            )
        return file

    def _batches(self, file, groups: list[int]) -> Iterator:
        from pyarrow import ArrowException

        batches = file.iter_batches(BATCH, row_groups=groups, columns=[self.field], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                if batch is not None:
                    batch.validate(full=True)
            except (OSError, ArrowException, UnicodeDecodeError) as error:
                raise TextError(f"text {self.path!r} can't be read as Parquet: {' '.join(str(error).split())}") from None
            if batch is None:
                return
            yield batch


def open_records(path: str, field: str) -> Records:
    """The documents of a file whose name says that it holds several."""
    if not os.path.isfile(path):
        raise TextError(f"text {path!r} is a pipe, and its documents are read more than once; give a file, or plain text with -")
    return {"lines": JsonLines, "array": JsonArray, "parquet": ParquetRows}[records_of(path)](path, field)
