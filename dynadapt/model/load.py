"""One entry for every kind of model."""
from __future__ import annotations

import os
from pathlib import Path

import torch

from dynadapt.model.base import Model
from dynadapt.model.directory import load_directory
from dynadapt.model.errors import ModelError
from dynadapt.model.live import is_live, load_live


def load(source, dtype: torch.dtype | None = None) -> Model:
    """A Model from a directory, a .safetensors file (its directory is loaded), or a live model.

    With `dtype`, tensors are converted when they are read. ModelError, naming the file or argument, for anything that
    cannot be loaded exactly.
    """
    if isinstance(source, Model):
        return source
    if is_live(source):
        return load_live(source, dtype)
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError(f"model = {type(source).__name__} object; accepted: a path or a live transformers model")
    path = Path(source).expanduser()
    if path.is_dir():
        return load_directory(path, dtype)
    if path.is_file() and path.suffix == ".safetensors":
        return load_directory(path.parent, dtype)
    raise ModelError(f"model = {str(source)!r} is not there; accepted: a model directory, a .safetensors file")
