"""Updates of bf16 weights as patches: the weights that changed, and by how much. A receiver that applies one has every bit.

After an update at a low rate most bf16 weights are what they were (PULSE, arXiv 2602.03839), and a patch is a small part of a model. A
patch is one safetensors file, which a reader in any language takes apart in a page of code:

    metadata  format "dynadapt-patch", version "1", number (of the patch in its chain, from 1), changed (how many weights), tensors
              (JSON: [[name, shape], ...] in the order of their names), sha256 (of all that follows here, as ``_seal`` says)
    digests   uint8 [tensors, 2, 32]: SHA-256 of each tensor's bytes (bf16, little-endian, row by row), before and after
    gaps      uint8: for each change, in order, how many weights lie between it and the one before. All tensors count as one row,
              one behind the other; the first gap is the first position
    steps     uint8: how many representable numbers each moves up or down
              gaps and steps are deflated LEB128, steps zigzag: patch_coding.py

Applying checks all before it changes anything: that the file is whole, the names and shapes, the digest of every tensor before and, on
a copy of what changes, after. So a wrong base, a patch left out or one that comes twice is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dynadapt.common.checks import integer, shown, wrong
from dynadapt.model import ModelError
from dynadapt.model.base import count_not_finite
from dynadapt.model.safetensors_file import SafetensorsFile
from dynadapt.runs.whole_files import replacing

from .patch_coding import ordered, pack, unordered, unpack, unzigzag, zigzag

FORMAT, VERSION = "dynadapt-patch", "1"
FIELDS = ("format", "version", "number", "changed", "tensors", "sha256")
PARTS = ("digests", "gaps", "steps")


class PatchError(ModelError):
    """A patch that can't be written, read or applied; nothing has changed."""


@dataclass(frozen=True)
class Patch:
    """What a file holds: ``positions`` int64 [changed], ascending over all tensors as one row, and ``steps`` int64 [changed]."""

    path: Path
    number: int
    shapes: dict[str, tuple[int, ...]]
    before: dict[str, str]  # name: SHA-256, in hex
    after: dict[str, str]
    positions: np.ndarray
    steps: np.ndarray

    @property
    def changed(self) -> int:
        """Weights that are other ones afterwards."""
        return len(self.positions)

    @property
    def elements(self) -> int:
        """Weights of all its tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def changed_by_tensor(self) -> dict[str, int]:
        """How many weights of each tensor are other ones afterwards."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        counts = np.diff(np.searchsorted(self.positions, ends), prepend=0)
        return dict(zip(self.shapes, counts.tolist()))

    @property
    def whole_bytes(self) -> int:
        """Bytes of its tensors themselves."""
        return 2 * self.elements

    @property
    def patch_bytes(self) -> int:
        """Bytes of its file."""
        return self.path.stat().st_size


def write_patch(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], path, number: int = 1) -> Patch:
    """Write what leads from ``before`` to ``after``, whole or not at all, and give it back.

    Args:
        before, after: bf16 tensors of the same names and shapes, on any device. What is rounded to bf16 here is the caller's affair:
            a chain from one rounded state to the next loses nothing, because each patch starts from what receivers have.
        path: the file; one that is there is replaced.
        number: of the patch in its chain.

    Raises:
        PatchError: naming the tensor that differs in name, shape or dtype, or holds a NaN or an infinity afterwards.
        RunError: the disk fails.
    """
    number, names = integer("number", number), sorted(before)
    if not names or names != sorted(after):
        alone = sorted(set(before) ^ set(after))
        raise PatchError(f"before and after: {f'only one of them has {alone[0]}' if alone else 'no tensors'}; expected the same ones")
    shapes, digests, positions, steps, start = {}, [], [], [], 0
    for name in names:
        old, new = _checked(f"before[{name!r}]", before[name]), _checked(f"after[{name!r}]", after[name])
        if old.shape != new.shape:
            raise PatchError(f"after[{name!r}] has shape {list(new.shape)}; before it had {list(old.shape)}")
        if new.numel() and count_not_finite(new):
            raise PatchError(f"after[{name!r}] holds {count_not_finite(new)} values that are NaN or infinite")
        shapes[name] = tuple(old.shape)
        digests.append((_digest(old), _digest(new)))
        old, new = old.flatten(), new.flatten()
        at = (old.view(torch.int16) != new.view(torch.int16)).nonzero()[:, 0]
        positions.append(at.numpy() + start)
        steps.append((ordered(new[at]) - ordered(old[at])).astype(np.int64))
        start += old.numel()
    where, by = np.concatenate(positions), np.concatenate(steps)
    stored = {
        "digests": torch.tensor([[list(old), list(new)] for old, new in digests], dtype=torch.uint8),
        "gaps": _bytes(pack(np.diff(where, prepend=-1) - 1)),
        "steps": _bytes(pack(zigzag(by))),
    }
    told = {"format": FORMAT, "version": VERSION, "number": str(number), "changed": str(len(where))}
    told["tensors"] = json.dumps([[name, list(shape)] for name, shape in shapes.items()], separators=(",", ":"))
    path = Path(path)
    with replacing(path) as temporary:
        save_file(stored, str(temporary), {**told, "sha256": _seal(told, stored)})
    hexadecimal = [(old.hex(), new.hex()) for old, new in digests]
    return Patch(
        path, number, shapes, *({name: pair[i] for name, pair in zip(names, hexadecimal)} for i in (0, 1)), positions=where, steps=by
    )


def read_patch(path) -> Patch:
    """A patch, checked as far as it can be without what it applies to.

    Raises:
        PatchError: naming the file, and what of it is missing, damaged, cut short or of a version that is not read.
    """
    path = Path(path)
    try:
        file = SafetensorsFile(path)
        told = file.metadata
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise PatchError(f"{path}: not a patch (format {shown(told.get('format') if isinstance(told, dict) else None)})")
        if told.get("version") != VERSION:
            raise PatchError(f"{path}: patch of version {shown(told.get('version'))}; this program reads {VERSION}")
        if set(told) != set(FIELDS) or set(file.tensors) != set(PARTS) or not all(isinstance(value, str) for value in told.values()):
            raise PatchError(f"{path}: damaged: a patch has {', '.join(FIELDS)} and the tensors {', '.join(PARTS)}")
        stored = {name: file.read(name, accepted=("U8",)) for name in PARTS}
    except PatchError:
        raise
    except ModelError as error:
        raise PatchError(str(error)) from error
    if _seal(told, stored) != told["sha256"]:
        raise PatchError(f"{path}: damaged: its bytes are not those that were written (sha256)")
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(told["tensors"])}
        elements, changed = sum(math.prod(shape) for shape in shapes.values()), int(told["changed"])
        if not 0 <= changed <= elements or tuple(stored["digests"].shape) != (len(shapes), 2, 32):
            raise ValueError(f"{changed} changes of {elements} weights in {len(shapes)} tensors")
        gaps, steps = (unpack(stored[name].numpy().tobytes(), changed) for name in ("gaps", "steps"))
        positions = np.cumsum(gaps + 1) - 1
        if changed and (gaps.max() >= elements or positions[-1] >= elements or steps.max() >= 1 << 18):
            raise ValueError("a change beyond the last weight")
    except (ValueError, TypeError) as error:  # made so: whoever sealed it did not write it by the format
        raise PatchError(f"{path}: not a patch that can be applied: {error}") from error
    digests = [[bytes(one.tolist()).hex() for one in pair] for pair in stored["digests"]]
    before, after = ({name: pair[i] for name, pair in zip(shapes, digests)} for i in (0, 1))
    return Patch(path, int(told["number"]), shapes, before, after, positions, unzigzag(steps))


@torch.no_grad()
def apply_patch(target, paths) -> list[Patch]:
    """Apply one patch, or several in their order, to bf16 weights in place: all of them, or nothing has changed.

    Args:
        target: a mapping of tensors (a state dict), or a module, whose state dict is meant. Tensors that the patches don't name stay.
        paths: a file, or the files of a chain in order.

    Returns:
        The patches.

    Raises:
        PatchError: naming the file and the tensor: it is damaged, the tensor is missing, of another shape or dtype, holds other weights
            than the patch starts from, or would end with others than the sender has; or the patch that does not follow the one before it.
    """
    state = target.state_dict() if isinstance(target, torch.nn.Module) else target
    if not isinstance(state, Mapping):
        raise wrong("target", target, "a module, or a mapping of names to tensors")
    one = isinstance(paths, (str, Path))
    if not one and not isinstance(paths, Iterable):
        raise wrong("paths", paths, "a file, or several in their order")
    patches = [read_patch(path) for path in ([paths] if one else paths)]
    made: dict[str, torch.Tensor] = {}
    for i, patch in enumerate(patches):
        _check_follows(patch, patches[i - 1] if i else None, state)
        made.update(_results(patch, {**state, **made}))
    for name, value in made.items():
        state[name].copy_(value)
    return patches


def _check_follows(patch: Patch, last: Patch | None, state: Mapping[str, torch.Tensor]) -> None:
    """Names and shapes of one patch, and the weights that it starts from: those there are, or those that the one before leads to."""
    if last is not None and (patch.shapes != last.shapes or patch.before != last.after):
        raise PatchError(
            f"{patch.path}: patch {patch.number} does not start where {last.path}, patch {last.number}, ends: out of order, or one is missing"
        )
    for name, shape in patch.shapes.items():
        if name not in state:
            raise PatchError(f"{patch.path}: is for a tensor {name}, which is not there")
        value = state[name]
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape or value.dtype != torch.bfloat16:
            raise PatchError(f"{patch.path}: is for {name} of bf16 {list(shape)}; there it is {shown(value)}")
    if last is not None:
        return
    found = {name: _digest(state[name]).hex() for name in patch.shapes}
    if found == patch.after != patch.before:
        raise PatchError(f"{patch.path}: patch {patch.number} has been applied to these weights already")
    for name, digest in patch.before.items():
        if found[name] != digest:
            raise PatchError(
                f"{patch.path}: patch {patch.number} starts from other weights: {name} has sha256 {found[name][:12]}..., {digest[:12]}... "
                "was expected (another base, a patch that is missing, or one out of order)"
            )


def _results(patch: Patch, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that a patch changes as it leaves them, on the CPU, checked."""
    made, start = {}, 0
    for name, shape in patch.shapes.items():
        size = math.prod(shape)
        low, high = np.searchsorted(patch.positions, [start, start + size])
        if low < high:
            value = state[name].detach().cpu().contiguous().clone().flatten()
            at = torch.from_numpy(patch.positions[low:high] - start)
            moved = ordered(value[at]) + patch.steps[low:high]
            if moved.min() < -(1 << 15) or moved.max() >= 1 << 15:
                raise PatchError(f"{patch.path}: leads out of bf16 in {name}")
            value[at] = unordered(moved)
            made[name] = value.view(shape)
        start += size
    for name, digest in patch.after.items():
        found = _digest(made[name]).hex() if name in made else patch.before[name]
        if found != digest:
            raise PatchError(
                f"{patch.path}: leads to other weights of {name} than the sender has (sha256 {found[:12]}..., {digest[:12]}...)"
            )
    return made


def _checked(name: str, value) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.bfloat16:
        raise PatchError(f"{name}={shown(value)}: expected a tensor of bf16")
    return value.detach().cpu().contiguous()


def _bytes(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8)


def _digest(value: torch.Tensor) -> bytes:
    return hashlib.sha256(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).digest()


def _seal(told: Mapping[str, str], stored: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hex, of the metadata but for this, in the order of ``FIELDS`` and each behind a line end, then of the three tensors."""
    digest = hashlib.sha256("".join(f"\n{told[name]}" for name in FIELDS[:-1]).encode())
    for name in PARTS:
        digest.update(stored[name].contiguous().view(-1).numpy())
    return digest.hexdigest()
