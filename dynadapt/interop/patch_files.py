"""Patches between the files of models: safetensors files, and directories of them as Hugging Face's and PEFT's are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dynadapt.runs.whole_files import new_directory, replacing

from .patches import Patch, PatchError, apply_patch, write_patch

SUFFIX = ".safetensors"


def tensor_files(path) -> list[Path]:
    """The safetensors files of a model: the file itself, or all that a directory holds, by name.

    Raises:
        PatchError: it is not there, or a directory without one.
    """
    path = Path(path)
    _check_link(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PatchError(f"{path}: no such file or directory; expected a {SUFFIX} file or a directory with one")
    found = sorted(path.glob(f"*{SUFFIX}"))
    if not found:
        raise PatchError(f"{path}: holds no {SUFFIX} file; expected a model's or an adapter's directory")
    for file in found:
        _check_link(file)
    return found


def check_files(base: Path) -> None:
    """Is all that a directory holds, links followed, something that can be copied?

    Raises:
        PatchError: naming the link that leads nowhere or back into itself, or the entry that is no file.
    """
    for folder, folders, files in os.walk(base, followlinks=True):
        for path in sorted(Path(folder, name) for name in (*folders, *files)):
            _check_link(path)
            if path.is_symlink() and path.is_dir() and path.resolve() in (Path(folder).resolve(), *Path(folder).resolve().parents):
                raise PatchError(f"{path}: is a link to {os.readlink(path)}, in which it lies itself: copying would never end; remove it")
            if not path.is_file() and not path.is_dir():
                raise PatchError(f"{path}: is a pipe, a socket or a device; expected files, directories, and links to such: remove it")


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        what = "expected files, directories, and links to such that are there: mend or remove it"
        raise PatchError(f"{path}: is a link to {os.readlink(path)}, which is not there; {what}")


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some safetensors files, by name.

    Raises:
        PatchError: naming the file that is no whole safetensors file, or the tensor that two of them hold.
    """
    return as_one({file: _tensors(file) for file in files})


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise PatchError(f"{file}: not a whole {SUFFIX} file ({error})") from error


def as_one(states: dict[Path, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of several files as one mapping onto the same memory; PatchError where two files hold one."""
    found: dict[str, torch.Tensor] = {}
    for file, state in states.items():
        if twice := sorted(found.keys() & state.keys()):
            raise PatchError(f"{file}: {twice[0]} stands in another file of the same directory too")
        found.update(state)
    return found


def make_patch(before, after, path, number: int = 1) -> Patch:
    """``write_patch`` between two models' files.

    Args:
        before, after: safetensors files, or directories of a model or adapter, in bf16.
        path: the patch.
        number: of the patch in its chain.

    Raises:
        PatchError: naming the path and what of it is no bf16 model, or the tensor by which they are not two states of one.
    """
    states = []
    for place in (before, after):
        if Path(place).resolve() in (Path(path).resolve(), *Path(path).resolve().parents):
            raise PatchError(f"{path}: is {place} or inside it, where a patch would pass for a part of the model; name another place")
        state = read_tensors(tensor_files(place))
        for name, value in state.items():
            if value.dtype != torch.bfloat16:
                word = str(value.dtype).removeprefix("torch.")
                raise PatchError(f"{place}: {name} is stored in {word}; patches are of bf16 weights: store both sides in bf16 first")
        states.append(state)
    return write_patch(*states, path, number)


def apply_to_files(base, paths, out) -> list[Patch]:
    """Write to ``out`` what patches make of ``base``, which stays: a file of a file, a directory with all else that is there of a directory.

    Raises:
        PatchError: as ``apply_patch``, as ``check_files``, or ``out`` is inside ``base``; RunError: ``out`` is there already, or the disk fails. Then ``out`` is not made.
    """
    base, out = Path(base), Path(out)
    if base.resolve() in out.resolve().parents:
        raise PatchError(f"{out}: is inside {base}, which would be copied into itself; name a place beside it")
    check_files(base)
    files = tensor_files(base)
    states = {file: _tensors(file) for file in files}
    patches = apply_patch(as_one(states), paths)
    if base.is_file():
        if out.exists():
            raise PatchError(f"{out} exists; name a file that does not")
        with replacing(out) as temporary:
            _save(states[base], base, temporary)
        return patches
    with new_directory(out) as folder:
        for entry in sorted(base.iterdir()):
            if entry in states:
                _save(states[entry], entry, folder / entry.name)
            elif entry.is_dir():
                shutil.copytree(entry, folder / entry.name)
            else:
                shutil.copyfile(entry, folder / entry.name)
    return patches


def _save(state: dict[str, torch.Tensor], source: Path, path: Path) -> None:
    """With the metadata that the source has."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file(state, str(path), metadata)
