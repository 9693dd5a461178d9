"""A Hugging Face model directory: config.json, safetensors files, tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import torch

from .base import Model
from .errors import ModelError
from .hf_config import config_from_hf, text_part
from .hf_weights import match_hf
from .json_file import MAX_INDEX_BYTES, MAX_TABLE_VALUES, read_json
from .layout import canonical_tensor
from .safetensors_file import SafetensorsFile, identity_of

INDEX = "model.safetensors.index.json"


def load_directory(path: str | Path, dtype: torch.dtype | None = None) -> Model:
    """The Model in a Hugging Face directory. Every name, shape and dtype is checked here; tensors are read later."""
    path = Path(path)
    where = path / "config.json"
    gguf = [] if where.exists() else sorted(file.name for file in path.glob("*.gguf") if file.is_file())
    if gguf:
        raise ModelError(
            f"{where}: cannot be read (no such file); the directory has {len(gguf)} GGUF files: give one of them "
            f"as the model, for example {path / gguf[0]}"
        )
    raw = read_json(where)
    try:
        config = config_from_hf(text_part(raw))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    files = [SafetensorsFile(file) for file in weight_files(path)]
    holder = _holders(files)
    found = {name: file.tensors[name].shape for name, file in holder.items()}
    config, stored = match_hf(config, found, str(path), lambda name: holder[name].read(name))
    for name in stored.values():
        _check_dtype(holder[name], name)

    def read(name):
        key = stored[name]
        return canonical_tensor(config, name, holder[key].read(key))

    def tokenizer():
        from .hf_tokenizer import directory_tokenizer  # here: a step needs no text, and the tokenizers package takes a while

        return directory_tokenizer(path, config)

    return Model(config, path.resolve().name, read, identity_of([file.path for file in files]), tokenizer, dtype, str(path))


def _holders(files):
    holder = {}
    for file in files:
        for name in file.tensors:
            if name in holder:
                raise ModelError(f"{file.path}: tensor {name} is also in {holder[name].path.name}")
            holder[name] = file
    return holder


def _check_dtype(file, name):
    dtype = file.tensors[name].dtype
    if dtype not in ("F32", "F16", "BF16"):
        raise ModelError(f"{file.path}: tensor {name} has dtype {dtype} (a quantised checkpoint?); accepted: F32, F16, BF16")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory: model.safetensors, or those of the index, or the only one there is."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if (path / INDEX).is_file():
        return _indexed_files(path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise ModelError(f"{path}: {len(files)} safetensors files and no {INDEX} that says which belong together")
    other = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    hint = f"; {other[0]} is a pickle, which is not read: save the model as safetensors" if other else ""
    raise ModelError(f"{path}: no model.safetensors{hint}")


def _indexed_files(path):
    index = read_json(path / INDEX, MAX_INDEX_BYTES, MAX_TABLE_VALUES)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{path / INDEX}: no weight_map of tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ModelError(f"{path / INDEX}: {name!r} is not the name of a file beside it")
        if not (path / name).is_file():
            raise ModelError(f"{path}: {name}, which {INDEX} names, is missing")
    return [path / name for name in names]
