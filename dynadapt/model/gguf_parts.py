"""A GGUF file, or the parts into which a large one was split, as one: the first part's metadata, the tensors of all."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from dynadapt.ops.quants import QuantisedWeight

from .errors import ModelError
from .gguf_file import GGUFFile, StoredTensor

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 99_999  # what the names have digits for
MAX_TENSORS = 2**31 - 1


class GGUFParts:
    """`files` as one: `.metadata` of the first, `.tensors` (name -> StoredTensor) and `read` and `blocks` of all, `.name`, `.paths`."""

    def __init__(self, name: str, files: list[GGUFFile]):
        self.name, self.paths = name, [file.path for file in files]
        self.metadata = files[0].metadata
        self._holder: dict[str, GGUFFile] = {}
        for file in files:
            for tensor in file.tensors:
                if tensor in self._holder:
                    raise ModelError(f"{file.path}: tensor {tensor!r} is also in {self._holder[tensor].path.name}")
                self._holder[tensor] = file
        self.tensors: dict[str, StoredTensor] = {tensor: file.tensors[tensor] for tensor, file in self._holder.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor, read now from the part that holds it."""
        return self._holder[name].read(name)

    def blocks(self, name: str) -> QuantisedWeight | None:
        """The matrix as it is stored, read now from the part that holds it; None as for ``GGUFFile.blocks``."""
        return self._holder[name].blocks(name)


def open_gguf(path: Path) -> GGUFParts:
    """The file at `path` with, if it is a part of a split one, all the others. ModelError names a part that is missing or that
    belongs to another file."""
    file = GGUFFile(path)
    count = _number(file, "split.count", 0)
    if count <= 1:
        return GGUFParts(path.stem, [file])
    named = _PART.fullmatch(path.name)
    if not named or int(named[3]) != count:
        raise ModelError(f"{path}: split.count = {count}, so that its parts must be named NAME-00001-of-{count:05d}.gguf and so on")
    paths = [path.with_name(f"{named[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for part in paths:  # before any is read
        if not part.is_file():
            raise ModelError(f"{path}: {part.name}, one of its {count} parts, is missing")
    files = [file if part == path else GGUFFile(part) for part in paths]
    for i, part in enumerate(files):
        found = _number(part, "split.count", 0), _number(part, "split.no", -1)
        if found != (count, i):
            raise ModelError(f"{part.path}: split.count and split.no are {found[0]} and {found[1]}, its name says {count} and {i}")
    total, found = _number(files[0], "split.tensors.count", -1), sum(len(part.tensors) for part in files)
    if total not in (-1, found):
        raise ModelError(f"{files[0].path}: split.tensors.count = {total}, the {count} parts hold {found}")
    return GGUFParts(named[1], files)


def _number(file, key, absent):
    value, high = file.metadata.get(key, absent), MAX_TENSORS if key == "split.tensors.count" else MAX_PARTS
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= high:
        raise ModelError(f"{file.path}: metadata {key} = {value!r} must be a whole number up to {high}")
    return value
