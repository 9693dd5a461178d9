"""Hugging Face's config.json: read into a ModelConfig, and written back.

Read are the families of `dynadapt.model.families`; anything in a config that would change the computation and is not
implemented is refused by name.
"""
from __future__ import annotations

from collections.abc import Mapping

from dynadapt.model.config import ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.family import FAMILIES, Family

# Extras of related architectures, with the value at which they do nothing.
_NEUTRAL = {
    "attention_multiplier": None, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
    "logit_scale": 1.0, "final_logit_softcapping": None, "attn_logit_softcapping": None, "query_pre_attn_scalar": None,
    "clip_qkv": None, "partial_rotary_factor": 1.0, "rotary_pct": 1.0, "no_rope_layers": None, "num_experts": None,
    "num_local_experts": None, "use_parallel_residual": False, "parallel_attn": False,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
}


def config_from_hf(raw: Mapping) -> ModelConfig:
    """The ModelConfig of a config.json's content, or ModelError naming the key that is missing or not supported."""
    if not isinstance(raw, Mapping):
        raise ModelError(f"the config must be a JSON object, not {type(raw).__name__}")
    model_type, family = _family(raw)
    _refuse_extras(raw)
    return family.from_hf(raw, model_type)


def _family(raw) -> tuple[str, Family]:
    """(model_type, family); a config without a model_type is known by its architecture."""
    types = {kind: (architecture, family) for family in FAMILIES.values() for kind, architecture in family.hf_types.items()}
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if model_type is None and isinstance(architectures, list):
        model_type = next((kind for kind, (architecture, _) in types.items() if architectures == [architecture]), None)
    if not isinstance(model_type, str) or model_type not in types:
        raise ModelError(f"architecture {raw.get('model_type') or architectures!r} is not supported; "
                         f"accepted model_type: {', '.join(types)}")
    return model_type, types[model_type][1]


def _refuse_extras(raw):
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method") if isinstance(raw["quantization_config"], Mapping) else None
        raise ModelError(f"quantization_config ({method}) is not supported: give the unquantised checkpoint, or a GGUF file")
    for key, neutral in _NEUTRAL.items():
        value = raw.get(key)
        if value is not None and value != neutral:
            raise ModelError(f"{key} = {value!r} is not supported; accepted: {neutral!r} or absent")


def config_to_hf(config: ModelConfig) -> dict:
    """The config.json content that transformers reads as this config (frequency factors have no such form)."""
    family = FAMILIES[config.family]
    model_type, architecture = next(iter(family.hf_types.items()))
    return {"model_type": model_type, "architectures": [architecture], "vocab_size": config.vocab_size,
            "tie_word_embeddings": config.tied_head, "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id, **family.to_hf(config)}
