"""Safetensors files: the header read and checked in full, tensors read one at a time.

Layout: 8 bytes little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the data, which
the tensors tile without gaps. Everything is checked against the size of the file before anything is allocated, and a
tensor is read straight into its own memory: no mapping of the file stays behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dynadapt.common.digests import prefix_digest

from .errors import ModelError
from .json_file import MAX_TABLE_VALUES, parse_json
from .regular_file import open_regular, opened

MAX_HEADER_BYTES = 100_000_000
FLOATS = ("F32", "F16", "BF16", "F64")
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `begin` is its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class SafetensorsFile:
    """A checked safetensors file. ModelError, naming the file, for anything that does not fit. ``metadata``: as it stands there, unchecked."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with opened(self.path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            raw = self._read_header(file, size)
        self.header_bytes = raw
        self.tensors = self._parse(raw, size)

    def _read_header(self, file, size):
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if length < 2 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ModelError(f"{self.path}: not a whole safetensors file ({size} bytes, header of {length} bytes)")
        raw = file.read(length)
        if len(raw) != length:
            raise ModelError(f"{self.path}: ended while its header was read")
        return raw

    def _parse(self, raw, size):
        try:
            header = parse_json(raw, MAX_TABLE_VALUES)
        except ValueError as error:
            raise ModelError(f"{self.path}: the safetensors header is not JSON ({str(error)[:200]})") from error
        if not isinstance(header, dict):
            raise ModelError(f"{self.path}: the safetensors header is not a JSON object")
        self.metadata = header.get("__metadata__")
        start = 8 + len(raw)
        tensors = {name: self._entry(name, entry, start, size) for name, entry in header.items() if name != "__metadata__"}
        end = start
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
            if tensor.begin != end:
                raise ModelError(f"{self.path}: tensor {name} begins at byte {tensor.begin} where {end} was expected")
            end += tensor.nbytes
        if end != size:
            raise ModelError(f"{self.path}: the file has {size} bytes, its header describes {end}")
        return tensors

    def _entry(self, name, entry, start, size):
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            item = _ITEM_BYTES.get(dtype)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"{self.path}: tensor {name!r} has a damaged header entry {str(entry)[:120]}") from error
        if item is None:
            raise ModelError(f"{self.path}: tensor {name!r} has dtype {dtype!r}; accepted: {', '.join(FLOATS)}")
        if not whole or not begin <= end <= size - start or len(shape) > 8 or math.prod(shape) * item != end - begin:
            raise ModelError(
                f"{self.path}: tensor {name!r} does not fit: {dtype} {str(shape)[:80]} in bytes {begin}..{end} of {size - start}"
            )
        return StoredTensor(dtype, tuple(shape), start + begin, end - begin)

    def dtype(self, name: str) -> torch.dtype | None:
        """The dtype in which a tensor is stored; None for one that is never read."""
        return _DTYPES.get(self.tensors[name].dtype)

    def read(self, name: str, accepted: tuple[str, ...] = FLOATS) -> torch.Tensor:
        """The tensor, read now into fresh memory. ModelError for a dtype that is not in ``accepted``."""
        stored = self.tensors[name]
        if stored.dtype not in accepted:
            raise ModelError(f"{self.path}: tensor {name} has dtype {stored.dtype}; accepted: {', '.join(accepted)}")
        tensor = torch.empty(stored.shape, dtype=_DTYPES[stored.dtype])
        if stored.nbytes:
            read_into(self.path, stored.begin, tensor)
        return tensor


def read_into(path: Path, begin: int, tensor: torch.Tensor) -> None:
    """Fill a contiguous tensor from the bytes of `path` at `begin`; ModelError if the file ends too early."""
    buffer = memoryview(tensor.view(-1).view(torch.uint8).numpy())
    done = 0
    with opened(path, buffering=0) as file:
        file.seek(begin)
        while done < len(buffer):
            count = file.readinto(buffer[done:])
            if not count:
                raise ModelError(f"{path}: ended while a tensor was read (it changed since it was opened?)")
            done += count


def hash_file(path: Path) -> bytes:
    """sha256 of all of a file."""
    with opened(path) as file:
        return prefix_digest(file).digest()


def sample_file(path: Path, pieces: int = 64, piece_bytes: int = 4096) -> bytes:
    """The size of a file and evenly spaced pieces of it: enough to tell two checkpoints apart, whatever their size."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        parts = [size.to_bytes(8, "little")]
        for i in range(pieces):
            file.seek(max(0, size - piece_bytes) * i // max(1, pieces - 1))
            parts.append(file.read(piece_bytes))
    return b"".join(parts)


def identity_of(paths: Sequence[Path]) -> Callable[[bool], bytes]:
    """What a Model takes for its `identity`: of these files' bytes, which are read once, or of a sample of them."""
    whole = cache(lambda: b"".join(hash_file(path) for path in paths))
    return lambda sampled: b"".join(sample_file(path) for path in paths) if sampled else whole()
