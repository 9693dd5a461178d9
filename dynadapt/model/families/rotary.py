"""What the families with rotary positions, RMSNorm and a gated feed-forward share."""
from __future__ import annotations

from collections.abc import Mapping

from dynadapt.model.config import ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.reading import check_number, check_size, read_flag, read_size, read_token

GROUPS = {"qkv": ("q", "k", "v"), "o": ("o",), "mlp_in": ("gate", "up"), "down": ("down",)}
HF_MODULES = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}
HF = {"hf_base": "model.", "hf_layers": "model.layers", "hf_modules": HF_MODULES}
TINY = {"layers": 3, "norm": "rms", "norm_eps": 1e-6, "activation": "swiglu", "rope_theta": 10000.0, "rope_scaling": None,
        "max_positions": 512, "attention_bias": False, "mlp_bias": False, "qk_norm": False, "bos_token_id": 0, "eos_token_id": 1}


def has_bias(config: ModelConfig, part: str) -> bool:
    """Biases on all linears of the attention, or of the feed-forward, or neither."""
    return config.mlp_bias if part in ("gate", "up", "down") else config.attention_bias


def from_hf(raw: Mapping, family: str, head_dim: int | None = None, **choices) -> ModelConfig:
    """The config of a config.json; `head_dim` is the default where it isn't hidden_size / heads."""
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ModelError(f"hidden_act = {raw['hidden_act']!r} is not supported for {family}; accepted: silu")
    heads, hidden = read_size(raw, "num_attention_heads"), read_size(raw, "hidden_size")
    head_dim = head_dim if raw.get("head_dim") is None else raw["head_dim"]
    if head_dim is None:
        if hidden % heads:
            raise ModelError(f"num_attention_heads = {heads} does not divide hidden_size = {hidden}")
        head_dim = hidden // heads
    kv_heads = raw.get("num_key_value_heads")
    theta, scaling, max_positions = _rope(raw)
    fields = dict(
        family=family, vocab_size=read_size(raw, "vocab_size"), hidden_size=hidden, layers=read_size(raw, "num_hidden_layers"),
        heads=heads, kv_heads=heads if kv_heads is None else kv_heads, head_dim=head_dim,
        ffn_size=read_size(raw, "intermediate_size"), norm="rms",
        norm_eps=check_number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6), 0.0, 1.0), activation="swiglu",
        rope_theta=theta, rope_scaling=scaling, max_positions=max_positions,
        tied_head=read_flag(raw, "tie_word_embeddings", False), attention_bias=False, mlp_bias=False, qk_norm=False,
        bos_token_id=read_token(raw, "bos_token_id"), eos_token_id=read_token(raw, "eos_token_id"))
    return ModelConfig(**{**fields, **choices})


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
    part = parameters.get("partial_rotary_factor")
    if part is not None and part != 1.0:
        raise ModelError(f"partial_rotary_factor = {part!r} is not supported; accepted: 1.0 or absent")
    theta = parameters.get("rope_theta")
    if theta is None:
        theta = raw.get("rope_theta")
    theta = check_number("rope_theta", 10000.0 if theta is None else theta, 1e-6, 1e15)
    max_positions = read_size(raw, "max_position_embeddings")
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


def refuse_sliding_window(window, config: ModelConfig, layer_types=None) -> None:
    """Refuse a window that would change a result within the model's own context. `layer_types`: explicit, one a layer."""
    if isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types):
        return
    if window is not None and check_size("sliding_window", window) < config.max_positions:
        raise ModelError(f"sliding-window attention (sliding_window = {window}, context {config.max_positions}) is not "
                         f"supported; accepted: full attention in every layer")


def qwen_window(raw: Mapping, config: ModelConfig) -> ModelConfig:
    """`config`, unless layers from `max_window_layers` on slide: Qwen's own rule."""
    first = raw.get("max_window_layers", 28)
    slides = read_flag(raw, "use_sliding_window", False) and isinstance(first, int) and first < config.layers
    explicit = raw.get("layer_types")
    refuse_sliding_window(raw.get("sliding_window") if slides or isinstance(explicit, list) else None, config, explicit)
    return config


def to_hf(config: ModelConfig) -> dict:
    """The keys of a config.json that all rotary families share."""
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] == "factors":
        raise ModelError("rope_scaling of type factors has no Hugging Face form; accepted: none, linear, llama3")
    return {"hidden_size": config.hidden_size, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "intermediate_size": config.ffn_size,
            "rms_norm_eps": config.norm_eps, "hidden_act": "silu", "max_position_embeddings": config.max_positions,
            "rope_theta": config.rope_theta, "rope_scaling": scaling and dict(scaling)}


def from_gguf(metadata, common: dict, **choices) -> ModelConfig:
    """The config of a GGUF file whose architecture is a rotary family."""
    fields = dict(kv_heads=metadata.size("attention.head_count_kv", common["heads"]), norm="rms", activation="swiglu",
                  norm_eps=metadata.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
                  rope_theta=metadata.number("rope.freq_base", 1e-6, 1e15, 10000.0), rope_scaling=metadata.rope_scaling(),
                  attention_bias="blk.0.attn_output.bias" in metadata.tensors,
                  mlp_bias="blk.0.ffn_up.bias" in metadata.tensors, qk_norm=False)
    return ModelConfig(**{**common, **fields, **choices})
