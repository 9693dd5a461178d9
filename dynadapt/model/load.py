"""One entry for every kind of model."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import torch

from .adapter_model import base_of, is_adapter, load_adapter_model
from .base import Model
from .directory import load_directory
from .errors import ModelError
from .fetch import KNOWN, cached
from .hub_cache import fetch_line, hub_directory, hub_models, hub_snapshot, parse_id
from .live import is_live, load_live

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(source, dtype: torch.dtype | None = None) -> Model:
    """A Model from `source`:

    - a known name ("smollm2-135m", once fetched);
    - a Hugging Face directory, a .gguf file, or a .safetensors file (its directory is loaded);
    - a PEFT adapter's directory: the base that it names, with the adapter merged into its weights;
    - a hub id ("HuggingFaceTB/SmolLM2-135M", or with @REVISION), from the Hugging Face cache on this disk. Nothing is downloaded;
    - a live transformers model.

    What is here under the name as a path goes before a hub id; a directory of a known name in the working directory is given as
    "./smollm2-135m". With `dtype`, tensors are converted when they are read. ModelError, naming the file or argument, for
    anything that cannot be loaded exactly.
    """
    if isinstance(source, Model):
        return source if dtype is None else source.converted(dtype)
    if is_live(source):
        return load_live(source, dtype)
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ModelError(f"model is a {type(source).__name__}; accepted: a name, a path, or a live transformers model")
    name = str(source)
    if isinstance(source, str) and name in KNOWN:
        return _named(load_directory(_known(name), dtype), name)
    path = Path(source).expanduser()
    if path.is_dir():
        return _named(_load_path(path, dtype), path.resolve().name, str(path.resolve()))
    if path.is_file():
        return _named(_load_file(path, dtype), None, str(path.absolute()))
    if isinstance(source, str) and (snapshot := hub_snapshot(name)):
        return _load_snapshot(name, snapshot, dtype)
    raise ModelError(
        f"model = {name!r} does not exist{_advice(name)}; accepted: {', '.join(KNOWN)}, a model directory, a PEFT adapter's "
        "directory, a .gguf file, a .safetensors file, a hub id (org/name) that is in the Hugging Face cache"
    )


def place_of(source) -> Path | None:
    """The directory or file that a name stands for, as `load` finds it; None for one that is nowhere, or no name."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    if str(source) in KNOWN:
        return cached(str(source))
    path = Path(source).expanduser()
    return path if path.exists() else hub_snapshot(str(source))


def directory_of(source) -> Path | None:
    """As `place_of`, an adapter's base in place of the adapter."""
    path = place_of(source)
    return directory_of(base_of(path)) if path is not None and is_adapter(path) else path


def _named(model: Model, name: str | None, origin: str | None = None) -> Model:
    model.name, model.origin = name or model.name, origin or name
    return model


def _known(name: str) -> Path:
    directory = cached(name)
    if directory is None:
        raise ModelError(f"model {name!r} is not in the cache yet: run `dynadapt fetch {name}`")
    return directory


def _load_path(path: Path, dtype) -> Model:
    if is_adapter(path):
        return load_adapter_model(path, load, dtype)
    if not (path / "config.json").exists() and not any(path.glob("*.gguf")):
        raise ModelError(f"{path / 'config.json'}: cannot be read (no such file){_inside(path)}")
    if (path / "metrics.jsonl").is_file():
        raise ModelError(f"{path} is a run, not a model; its adapter is written by: dynadapt export {path} DIR, which --model takes")
    return load_directory(path, dtype)


def _inside(path: Path) -> str:
    """What of use lies in a directory that is no model."""
    entries = sorted(path.iterdir())
    models = [entry for entry in entries if entry.is_dir() and ((entry / "config.json").is_file() or is_adapter(entry))]
    if models:
        return f"; {models[0]} is a model: give that"
    pickles = [entry.name for entry in entries if entry.suffix in PICKLES]
    return f"; {pickles[0]} is a pickle, which is not read: save the model as safetensors" if pickles else ""


def _load_file(path: Path, dtype) -> Model:
    if path.suffix == ".gguf":
        from .gguf_model import load_gguf  # here: other files need neither the gguf package nor tokenizers

        return load_gguf(path, dtype)
    if path.name == "adapter_model.safetensors" and is_adapter(path.parent):
        return load_adapter_model(path.parent, load, dtype)
    if path.suffix == ".safetensors":
        return load_directory(path.parent, dtype)
    if path.suffix in PICKLES:
        raise ModelError(
            f"model = {str(path)!r} is a pickle, which is not read (it could run code): save the model as safetensors, "
            "for example with transformers' save_pretrained"
        )
    if path.name in ("config.json", "tokenizer.json", "adapter_config.json", "model.safetensors.index.json"):
        raise ModelError(f"model = {str(path)!r} is a part of a model; give its directory, {path.parent}")
    raise ModelError(
        f"model = {str(path)!r} is neither .gguf nor .safetensors; accepted: {', '.join(KNOWN)}, a model directory, "
        "a .gguf file, a .safetensors file"
    )


def _load_snapshot(name: str, snapshot: Path, dtype) -> Model:
    try:
        return _named(_load_path(snapshot, dtype), name)
    except ModelError as error:
        absent = re.search(r"no model\.safetensors$|is missing$|no such file", str(error))
        raise ModelError(
            f"model {name!r}, of the Hugging Face cache: {error}"
            + (f". If files are missing, fetch them with: {fetch_line(name)}" if absent else "")
        ) from error


def _advice(name: str) -> str:
    """What the writer of a name that is nowhere may have meant."""
    bare = re.sub(r"^(https?://)?(www\.)?(huggingface\.co|hf\.co)/|^(hf|hub):(//)?", "", name).removesuffix("/").removesuffix("/tree/main")
    if bare != name and parse_id(bare):
        return f"; a model of the hub is given as {bare!r}"
    known = [*KNOWN, *hub_models()]
    folded = {other.lower(): other for other in known} | {other.lower().rpartition("/")[2]: other for other in known}
    if close := difflib.get_close_matches(name.lower().rpartition("/")[2], folded, 1, 0.75):
        if folded[close[0]] != name:
            meant = folded[close[0]]
            also = f" (or fetch {name} with: {fetch_line(name)})" if "/" in name and parse_id(name) else ""
            return f"; did you mean {meant!r}?{also}"
    if "/" in name and parse_id(name) and Path(name).suffix not in (".gguf", ".safetensors", *PICKLES) and name[0] not in "./~":
        return f", and the Hugging Face cache ({hub_directory()}) has no model of this name: fetch it with: {fetch_line(name)}"
    parent = Path(name).expanduser().parent
    if parent != Path(".") and parent.is_dir():
        there = difflib.get_close_matches(Path(name).name, [entry.name for entry in parent.iterdir() if entry.exists()], 1, 0.7)
        return f"; did you mean {str(parent / there[0])!r}?" if there else ""
    return ""
