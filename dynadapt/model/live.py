"""A live transformers model: its config and its own tensors, without importing transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from .base import MODEL_DTYPES, Model, from_state
from .config import ModelConfig
from .errors import ModelError
from .hf_config import config_from_hf
from .hf_weights import match_hf
from .layout import canonical_tensor
from .live_state import refuse_changes, refuse_modules


def is_live(model) -> bool:
    """Whether `model` looks like a transformers model: a module with a config that can be written as a dict."""
    return isinstance(model, torch.nn.Module) and hasattr(getattr(model, "config", None), "to_dict")


def load_live(model, dtype: torch.dtype | None = None) -> Model:
    """A Model that shares the tensors of a live transformers model, wherever they are.

    Conv1D weights (GPT-2) are copied when read, since they are stored transposed; linears of queries and keys whose rows stand in another
    order are copied here, and norm weights that are stored as w of 1 + w are added up. The tokenizer is that of the directory the model
    was loaded from, if there is one.
    """
    name = type(model).__name__
    config, stored, state = match_live(model)
    canonical_state = {canonical: canonical_tensor(config, canonical, state[key]) for canonical, key in stored.items()}
    origin = Path(str(getattr(model.config, "_name_or_path", "") or ""))

    def tokenizer():
        from .hf_tokenizer import directory_tokenizer  # here: a step needs no text

        return directory_tokenizer(origin, config)

    return from_state(config, canonical_state, tokenizer if origin.name and origin.is_dir() else None, name=name, dtype=dtype)


def match_live(model) -> tuple[ModelConfig, dict[str, str], dict[str, torch.Tensor]]:
    """(config, canonical name -> stored name, stored name -> the model's own tensor, detached)."""
    name = type(model).__name__
    if name.startswith("Peft") or hasattr(model, "peft_config"):
        raise ModelError(f"{name}: a model with PEFT adapters; accepted: the plain model, for example merge_and_unload()")
    refuse_modules(model, name)
    raw = model.config.to_dict()
    if "gguf" in str((raw.get("quantization_config") or {}).get("quant_method", "")).lower():
        del raw["quantization_config"]  # its origin only: transformers holds such a model dequantised
    state = {key: value.detach() for key, value in model.state_dict().items()}
    try:
        config = config_from_hf(raw)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    config, stored = match_hf(config, {key: tuple(value.shape) for key, value in state.items()}, name, state.__getitem__)
    for key in stored.values():
        if state[key].dtype not in MODEL_DTYPES:
            raise ModelError(f"{name}: tensor {key} has dtype {state[key].dtype}; accepted: {', '.join(map(str, MODEL_DTYPES))}")
        if state[key].is_meta:
            raise ModelError(f"{name}: tensor {key} is on the meta device and has no values")
    refuse_changes(model, config, name)
    return config, stored, state
