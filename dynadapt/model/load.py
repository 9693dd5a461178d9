"""One entry for every kind of model."""
from __future__ import annotations

import difflib
import os
from pathlib import Path

import torch

from dynadapt.model.base import Model
from dynadapt.model.directory import load_directory
from dynadapt.model.errors import ModelError
from dynadapt.model.fetch import KNOWN, cached
from dynadapt.model.gguf_model import load_gguf
from dynadapt.model.live import is_live, load_live


def load(source, dtype: torch.dtype | None = None) -> Model:
    """A Model from `source`: a known name ("smollm2-135m", once fetched), a Hugging Face directory, a .gguf file, a
    .safetensors file (its directory is loaded), or a live transformers model.

    A directory of a known name in the working directory is given as "./smollm2-135m". With `dtype`, tensors are converted
    when they are read. ModelError, naming the file or argument, for anything that cannot be loaded exactly.
    """
    if isinstance(source, Model):
        return source if dtype is None else source.converted(dtype)
    if is_live(source):
        return load_live(source, dtype)
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ModelError(f"model is a {type(source).__name__}; accepted: a name, a path, or a live transformers model")
    if str(source) in KNOWN:
        return _load_known(str(source), dtype)
    path = Path(source).expanduser()
    if path.is_dir():
        return load_directory(path, dtype)
    if path.is_file() and path.suffix == ".gguf":
        return load_gguf(path, dtype)
    if path.is_file() and path.suffix == ".safetensors":
        return load_directory(path.parent, dtype)
    wrong = "is neither .gguf nor .safetensors" if path.is_file() else "does not exist"
    near = difflib.get_close_matches(str(source), KNOWN, n=1)
    wrong += f"; did you mean {near[0]}?" if near else ""
    raise ModelError(f"model = {str(source)!r} {wrong}; accepted: {', '.join(KNOWN)}, a model directory, a .gguf file, "
                     f"a .safetensors file")


def _load_known(name, dtype):
    directory = cached(name)
    if directory is None:
        raise ModelError(f"model {name!r} is not in the cache yet: run `dynadapt fetch {name}`")
    model = load_directory(directory, dtype)
    model.name = name
    return model
