"""Hugging Face's config.json: read into a ModelConfig, and written back.

Read are the families of `dynadapt.model.config`; anything in a config that would change the computation and is not
implemented is refused by name.
"""
from __future__ import annotations

from collections.abc import Mapping

from dynadapt.model.config import ModelConfig, check_number, check_size
from dynadapt.model.errors import ModelError

MODEL_TYPES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2",
                 "Qwen3ForCausalLM": "qwen3", "GPT2LMHeadModel": "gpt2"}
_GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu"}

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
    model_type = _model_type(raw)
    _refuse_extras(raw)
    family = MODEL_TYPES[model_type]
    config = _gpt2(raw) if family == "gpt2" else _rotary(raw, model_type, family)
    _refuse_sliding_window(raw, model_type, config)
    return config


def _model_type(raw):
    model_type = raw.get("model_type")
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelError(f"architectures = {architectures!r} must be a list of names")
    if model_type is None and len(architectures) == 1:
        model_type = ARCHITECTURES.get(str(architectures[0]))
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ModelError(f"architecture {raw.get('model_type') or architectures!r} is not supported; "
                         f"accepted model_type: {', '.join(MODEL_TYPES)}")
    return model_type


def _refuse_extras(raw):
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method") if isinstance(raw["quantization_config"], Mapping) else None
        raise ModelError(f"quantization_config ({method}) is not supported: give the unquantised checkpoint, or a GGUF file")
    for key, neutral in _NEUTRAL.items():
        value = raw.get(key)
        if value is not None and value != neutral:
            raise ModelError(f"{key} = {value!r} is not supported; accepted: {neutral!r} or absent")


def _rotary(raw, model_type, family):
    act = raw.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ModelError(f"hidden_act = {act!r} is not supported for {model_type}; accepted: silu")
    heads, hidden = _size(raw, "num_attention_heads"), _size(raw, "hidden_size")
    head_dim = raw.get("head_dim")
    if head_dim is None:
        if family != "qwen3" and hidden % heads:
            raise ModelError(f"num_attention_heads = {heads} does not divide hidden_size = {hidden}")
        head_dim = 128 if family == "qwen3" else hidden // heads
    kv_heads = raw.get("num_key_value_heads")
    theta, scaling, max_positions = _rope(raw)
    return ModelConfig(
        family=family, vocab_size=_size(raw, "vocab_size"), hidden_size=hidden, layers=_size(raw, "num_hidden_layers"),
        heads=heads, kv_heads=heads if kv_heads is None else kv_heads, head_dim=head_dim,
        ffn_size=_size(raw, "intermediate_size"), norm="rms",
        norm_eps=check_number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6), 0.0, 1.0), activation="swiglu",
        rope_theta=theta, rope_scaling=scaling, max_positions=max_positions,
        tied_head=_flag(raw, "tie_word_embeddings", False),
        attention_bias=family == "qwen2" or (model_type != "mistral" and _flag(raw, "attention_bias", False)),
        mlp_bias=model_type == "llama" and _flag(raw, "mlp_bias", False), qk_norm=family == "qwen3",
        bos_token_id=_token(raw, "bos_token_id"), eos_token_id=_token(raw, "eos_token_id"))


def _rope(raw):
    """(theta, scaling, max_positions). Newer configs keep all of it in `rope_parameters`, older ones in two keys."""
    parameters = raw.get("rope_parameters")
    if parameters is None:
        parameters = raw.get("rope_scaling")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise ModelError(f"rope_scaling = {parameters!r} must be an object or null")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise ModelError("rope_parameters by layer type are not supported; accepted: one set for all layers")
    factor = parameters.get("partial_rotary_factor")
    if factor is not None and factor != 1.0:
        raise ModelError(f"partial_rotary_factor = {factor!r} is not supported; accepted: 1.0 or absent")
    theta = parameters.get("rope_theta")
    if theta is None:
        theta = raw.get("rope_theta")
    theta = check_number("rope_theta", 10000.0 if theta is None else theta, 1e-6, 1e15)
    max_positions = _size(raw, "max_position_embeddings")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return theta, _scaling(kind, parameters, max_positions), max_positions


def _scaling(kind, parameters, max_positions):
    if kind == "default":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": parameters.get("factor")}
    if kind == "llama3":
        scaling = {key: parameters.get(key) for key in ("factor", "low_freq_factor", "high_freq_factor")}
        original = parameters.get("original_max_position_embeddings")
        return {"rope_type": "llama3", **scaling,
                "original_max_position_embeddings": max_positions if original is None else original}
    raise ModelError(f"rope_scaling type {kind!r} is not supported; accepted: default, linear, llama3")


def _gpt2(raw):
    act = raw.get("activation_function", "gelu_new")
    if act not in _GPT2_ACTIVATIONS:
        raise ModelError(f"activation_function = {act!r} is not supported for gpt2; accepted: {', '.join(_GPT2_ACTIVATIONS)}")
    hidden, heads = _size(raw, "n_embd", "hidden_size"), _size(raw, "n_head", "num_attention_heads")
    if hidden % heads:
        raise ModelError(f"n_head = {heads} does not divide n_embd = {hidden}")
    inner = raw.get("n_inner")
    return ModelConfig(
        family="gpt2", vocab_size=_size(raw, "vocab_size"), hidden_size=hidden,
        layers=_size(raw, "n_layer", "num_hidden_layers"), heads=heads, kv_heads=heads, head_dim=hidden // heads,
        ffn_size=4 * hidden if inner is None else check_size("n_inner", inner), norm="layer",
        norm_eps=check_number("layer_norm_epsilon", raw.get("layer_norm_epsilon", 1e-5), 0.0, 1.0),
        activation=_GPT2_ACTIVATIONS[act], rope_theta=None, rope_scaling=None,
        max_positions=_size(raw, "n_positions", "max_position_embeddings"),
        tied_head=_flag(raw, "tie_word_embeddings", True), attention_bias=True, mlp_bias=True, qk_norm=False,
        bos_token_id=_token(raw, "bos_token_id"), eos_token_id=_token(raw, "eos_token_id"))


def _refuse_sliding_window(raw, model_type, config):
    """Sliding-window attention is refused where it would change a result within the model's own context."""
    window = raw.get("sliding_window", 4096 if model_type == "mistral" else None)
    layer_types = raw.get("layer_types")
    if isinstance(layer_types, list):
        active = any(kind != "full_attention" for kind in layer_types)
    elif model_type in ("qwen2", "qwen3"):
        first = raw.get("max_window_layers", 28)
        active = _flag(raw, "use_sliding_window", False) and isinstance(first, int) and first < config.layers
    else:
        active = model_type == "mistral"
    if active and window is not None and check_size("sliding_window", window) < config.max_positions:
        raise ModelError(f"sliding-window attention (sliding_window = {window}, context {config.max_positions}) is not "
                         f"supported; accepted: full attention in every layer")


def _size(raw, *keys):
    for key in keys:
        if raw.get(key) is not None:
            return check_size(key, raw[key])
    raise ModelError(f"{keys[0]} is missing from the config")


def _flag(raw, key, default):
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{key} = {value!r} must be true or false")
    return value


def _token(raw, key):
    value = raw.get(key)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ModelError(f"{key} = {value!r} must be a token id, a list of them, or null")
    return value


def config_to_hf(config: ModelConfig) -> dict:
    """The config.json content that transformers reads as this config (frequency factors have no such form)."""
    common = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied_head,
              "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    if config.family == "gpt2":
        activation = {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation]
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **common, "n_embd": config.hidden_size,
                "n_layer": config.layers, "n_head": config.heads, "n_inner": config.ffn_size,
                "n_positions": config.max_positions, "layer_norm_epsilon": config.norm_eps,
                "activation_function": activation}
    if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "factors":
        raise ModelError("rope_scaling of type factors has no Hugging Face form; accepted: none, linear, llama3")
    architecture = next(name for name, kind in ARCHITECTURES.items() if kind == config.family)
    return {"model_type": config.family, "architectures": [architecture], **common, "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "intermediate_size": config.ffn_size,
            "rms_norm_eps": config.norm_eps, "hidden_act": "silu", "max_position_embeddings": config.max_positions,
            "rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling and dict(config.rope_scaling),
            **({} if config.family == "qwen2" else {"attention_bias": config.attention_bias}),
            **({"mlp_bias": config.mlp_bias} if config.family == "llama" else {})}
