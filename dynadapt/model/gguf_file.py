"""GGUF files: header, metadata and tensor table, read and checked in full before any tensor is touched.

The reader follows the format's specification (versions 2 and 3, little-endian) and bounds every length by what is left
of the file, so that a damaged file is an error and never a huge allocation. Dequantising is the gguf package's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

try:
    import gguf
except ImportError:  # only GGUF files need it
    gguf = None

from dynadapt.ops.quants import BLOCK_FORMATS, QuantisedWeight

from .errors import ModelError
from .regular_file import opened
from .safetensors_file import read_into

_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: `shape` is row-major ([out, in]), `begin` its first byte in the file."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class GGUFFile:
    """A checked GGUF file: `.metadata` (key -> value; arrays are lists) and `.tensors` (name -> StoredTensor).

    ModelError, naming the file, for anything that does not fit.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        if gguf is None:
            raise ModelError(f"{self.path}: reading GGUF files needs the package gguf, which is not installed (pip install gguf)")
        try:
            with opened(self.path) as file:
                self._read(_Cursor(file))
        except _Damaged as error:
            raise ModelError(f"{self.path}: {error}") from error

    def _read(self, cursor):
        if cursor.size < 24 or cursor.take(4) != b"GGUF":
            raise _Damaged(f"not a GGUF file ({cursor.size} bytes, no GGUF mark at the start)")
        version = cursor.number("<u4")
        if version not in (2, 3):
            big = version & 0xFFFF == 0 and version
            raise _Damaged(f"GGUF version {version} is not supported{' (a big-endian file)' if big else ''}; accepted: 2, 3")
        tensor_count, key_count = cursor.number("<u8"), cursor.number("<u8")
        self.metadata = {}
        for _ in range(cursor.count(key_count, 13, "metadata keys")):
            key = cursor.string("a metadata key")
            if key in self.metadata:
                raise _Damaged(f"metadata key {key!r} appears twice")
            self.metadata[key] = cursor.value(cursor.number("<u4"), key)
        entries = [self._entry(cursor) for _ in range(cursor.count(tensor_count, 24, "tensors"))]
        self._place(entries, cursor)

    def _entry(self, cursor):
        name = cursor.string("a tensor's name")
        dims = cursor.number("<u4")
        if not 1 <= dims <= 4:
            raise _Damaged(f"tensor {name!r} has {dims} dimensions; accepted: 1 to 4")
        shape = tuple(cursor.number("<u8") for _ in range(dims))[::-1]
        kind = cursor.number("<u4")
        try:
            kind = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise _Damaged(f"tensor {name!r} has the unknown type {kind}") from None
        if not all(1 <= n <= cursor.size * 32 for n in shape) or shape[-1] % block:
            raise _Damaged(f"tensor {name!r} has shape {list(shape)}, which does not fit type {kind.name}")
        return name, kind, shape, math.prod(shape) // block * block_bytes, cursor.number("<u8")

    def _place(self, entries, cursor):
        """Turn table entries into StoredTensors, each inside the file, none over another."""
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Damaged(f"general.alignment = {alignment!r} must be a power of two")
        start = -(-cursor.position // alignment) * alignment
        self.header_bytes = cursor.position
        self.tensors: dict[str, StoredTensor] = {}
        for name, kind, shape, nbytes, offset in entries:
            if name in self.tensors:
                raise _Damaged(f"tensor {name!r} appears twice")
            if offset % alignment or start + offset + nbytes > cursor.size:
                raise _Damaged(
                    f"tensor {name!r} ({nbytes} bytes at {start + offset}) lies outside the file of {cursor.size} bytes: is it truncated?"
                )
            self.tensors[name] = StoredTensor(kind, shape, start + offset, nbytes)
        end, last = start, "the header"
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].begin):
            if tensor.begin < end:
                raise _Damaged(f"tensor {name!r} overlaps {last!r}")
            end, last = tensor.begin + tensor.nbytes, name

    def read(self, name: str) -> torch.Tensor:
        """The tensor, read now: F32, F16 and BF16 as they are, every other type dequantised to float32."""
        stored = self.tensors[name]
        if stored.kind.name in _PLAIN:
            tensor = torch.empty(stored.shape, dtype=_PLAIN[stored.kind.name])
            read_into(self.path, stored.begin, tensor)
            return tensor
        raw = self._bytes(stored)
        with np.errstate(all="ignore"):  # damaged scales are found by check_finite, not by a warning
            values = gguf.quants.dequantize(raw.numpy().reshape(*stored.shape[:-1], -1), stored.kind)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(stored.shape)

    def blocks(self, name: str) -> QuantisedWeight | None:
        """The matrix as it is stored, read now; None for a tensor that is no matrix, or of a type that ops/quants.py does not have."""
        stored = self.tensors[name]
        kind = stored.kind.name.lower()
        if kind not in BLOCK_FORMATS or len(stored.shape) != 2:
            return None
        return QuantisedWeight(kind, (stored.shape[0], stored.shape[1]), self._bytes(stored).view(stored.shape[0], -1))

    def _bytes(self, stored: StoredTensor) -> torch.Tensor:
        raw = torch.empty(stored.nbytes, dtype=torch.uint8)
        read_into(self.path, stored.begin, raw)
        return raw


def can_read(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether tensors of this type can be read: a plain float, or a type the gguf package dequantises."""
    if kind.name in _PLAIN:
        return True
    if kind.name in ("F64", "I8", "I16", "I32", "I64"):
        return False
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class _Damaged(Exception):
    """What is wrong with the file; GGUFFile puts its name in front."""


class _Cursor:
    """Reads forward through a file and never past its end."""

    def __init__(self, file):
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.position = 0

    def take(self, count):
        if count > self.size - self.position:
            raise _Damaged(f"{count} bytes are needed at byte {self.position}, the file ends at {self.size}: is it truncated?")
        data = self.file.read(count)
        if len(data) != count:
            raise _Damaged(f"ended at byte {self.position + len(data)} while it was read")
        self.position += count
        return data

    def number(self, kind):
        return np.frombuffer(self.take(np.dtype(kind).itemsize), dtype=kind)[0].item()

    def count(self, count, least_bytes, what):
        """`count` items of at least `least_bytes` each, if the file is long enough for them."""
        if count * least_bytes > self.size - self.position:
            raise _Damaged(f"{count} {what} do not fit into the {self.size - self.position} bytes left")
        return count

    def string(self, what):
        (length,) = struct.unpack("<Q", self.take(8))
        data = self.take(length)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Damaged(f"{what} is not UTF-8 ({error.reason} at byte {self.position - length + error.start})") from None

    def value(self, kind, key):
        if kind == _STRING:
            return self.string(f"metadata {key!r}")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise _Damaged(f"metadata {key!r} has the unknown type {kind}")
        item, length = self.number("<u4"), self.number("<u8")
        if item == _STRING:
            return [self.string(f"metadata {key!r}") for _ in range(self.count(length, 8, f"strings of {key!r}"))]
        if item not in _SCALARS:
            raise _Damaged(f"metadata {key!r} is an array of the unsupported type {item}")
        dtype = np.dtype(_SCALARS[item])
        data = self.take(self.count(length, dtype.itemsize, f"numbers of {key!r}") * dtype.itemsize)
        return np.frombuffer(data, dtype="u1" if item == 7 else dtype).tolist()
