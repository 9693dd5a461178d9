"""Hugging Face's config.json: read into a ModelConfig, and written back.

Read are the families of `dynadapt.model.families`. Every key is read, known not to change a score, or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from .config import ModelConfig
from .config_keys import refuse_unread
from .errors import ModelError
from .family import FAMILIES, Family


def config_from_hf(raw: Mapping) -> ModelConfig:
    """The ModelConfig of a config.json's content, or ModelError naming the key that is missing or not supported."""
    if not isinstance(raw, Mapping):
        raise ModelError(f"the config must be a JSON object, not {type(raw).__name__}")
    model_type, family = _family(raw)
    _refuse_quantised(raw)
    refuse_unread(raw, model_type, family.hf_keys[model_type])
    return family.from_hf(raw, model_type)


def text_part(raw):
    """The config of the text model within a config.json of a model of images and text; that of a text model is itself."""
    kind = raw.get("model_type") if isinstance(raw, Mapping) else None
    inner = next((family.hf_around[kind] for family in FAMILIES.values() if isinstance(kind, str) and kind in family.hf_around), None)
    if inner is None:
        return raw
    text = raw.get("text_config")
    if not isinstance(text, Mapping) or text.get("model_type", inner) != inner:
        raise ModelError(f"text_config of model_type {kind} must be an object of model_type {inner}")
    _refuse_quantised(raw)
    return {**text, "model_type": inner}


def _family(raw) -> tuple[str, Family]:
    """(model_type, family); a config without a model_type is known by its architecture."""
    types = {kind: (architecture, family) for family in FAMILIES.values() for kind, architecture in family.hf_types.items()}
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if model_type is None and isinstance(architectures, list):
        model_type = next((kind for kind, (architecture, _) in types.items() if architectures == [architecture]), None)
    if not isinstance(model_type, str) or model_type not in types:
        raise ModelError(
            f"architecture {raw.get('model_type') or architectures!r} is not supported; accepted model_type: {', '.join(types)}"
        )
    return model_type, types[model_type][1]


def _refuse_quantised(raw):
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None:
            method = raw[key].get("quant_method") if isinstance(raw[key], Mapping) else raw[key]
            raise ModelError(f"{key} ({method}) is not supported: give the unquantised checkpoint, or a GGUF file")


def config_to_hf(config: ModelConfig) -> dict:
    """The config.json content that transformers reads as this config (frequency factors have no such form)."""
    family = FAMILIES[config.family]
    model_type, architecture = next(iter(family.hf_types.items()))
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        **family.to_hf(config),
    }
