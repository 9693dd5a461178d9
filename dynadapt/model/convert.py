"""Write a Model as a Hugging Face directory that transformers loads too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .base import Model
from .hf_config import config_to_hf
from .layout import file_name, hf_tensor


def write_directory(model: Model, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json, generation_config.json, model.safetensors in `dtype`, tokenizer.json and its config to the new
    directory `path`.

    bfloat16 is what the engine computes in. For SmolLM2-135M from its Q4_1 file, rounding the dequantised weights to it
    changes each tensor by 0.14% and the mean NLL by 0.00001 nats a token (4,096 tokens of Python's language reference).
    """
    path = Path(path)
    path.mkdir(parents=True)
    config = config_to_hf(model.config)
    name = str(dtype).removeprefix("torch.")
    _write_json(path / "config.json", {**config, "dtype": name, "torch_dtype": name})
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config[key] is not None}
    _write_json(path / "generation_config.json", tokens)
    _save(model, path / "model.safetensors", dtype)
    if model.tokenizer is not None:
        model.tokenizer.save(path / "tokenizer.json")
        _write_json(path / "tokenizer_config.json", _tokenizer_config(model))


def _save(model, file, dtype):
    state = {}
    for name in model.names():
        state[file_name(model.config, name)] = hf_tensor(model.config, name, model.tensor(name)).to(dtype).contiguous()
    try:
        save_file(state, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {error}") from error


def _tokenizer_config(model):
    tokenizer = model.tokenizer
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, **tokenizer.special_ids}
    special = {key: tokenizer.backend.id_to_token(id) for key, id in ids.items() if id is not None}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_positions,
        "clean_up_tokenization_spaces": tokenizer.clean_up,
        **special,
    }


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
