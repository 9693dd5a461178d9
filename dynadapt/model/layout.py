"""The canonical tensors of a model: their names, shapes, and what Hugging Face checkpoints call them.

Every linear weight is [out, in]. Shapes below: V vocabulary, H hidden, P positions, F feed-forward, d head size.
"""
from __future__ import annotations

from dynadapt.model.config import ModelConfig

_HF_ROTARY = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}
_HF_GPT2 = {
    "embed": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head",
    "attn_norm": "ln_1", "mlp_norm": "ln_2",
    "qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj",
}


def layout(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The linear groups of a layer: the parts of a group share their input."""
    if config.family == "gpt2":
        return {"qkv": ("qkv",), "o": ("o",), "mlp_in": ("up",), "down": ("down",)}
    return {"qkv": ("q", "k", "v"), "o": ("o",), "mlp_in": ("gate", "up"), "down": ("down",)}


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """part -> (out, in) of every linear of a layer, in the order of computation."""
    H, F = config.hidden_size, config.ffn_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    if config.family == "gpt2":
        return {"qkv": (3 * H, H), "o": (H, H), "up": (F, H), "down": (H, F)}
    return {"q": (q, H), "k": (kv, H), "v": (kv, H), "o": (H, q), "gate": (F, H), "up": (F, H), "down": (H, F)}


def has_bias(config: ModelConfig, part: str) -> bool:
    """Whether the linear `part` has a bias. Qwen2 has none on o whatever `attention_bias` says."""
    if part in ("gate", "up", "down"):
        return config.mlp_bias
    return config.attention_bias and not (config.family == "qwen2" and part == "o")


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of the model, in the order of computation."""
    V, H, d = config.vocab_size, config.hidden_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (V, H)}
    if config.family == "gpt2":
        shapes["positions.weight"] = (config.max_positions, H)
    linears = linear_shapes(config)
    for i in range(config.layers):
        layer = f"layers.{i}"
        _add_norm(shapes, config, f"{layer}.attn_norm")
        for group, parts in layout(config).items():
            if group == "mlp_in":
                _add_norm(shapes, config, f"{layer}.mlp_norm")
            for part in parts:
                shapes[f"{layer}.{part}.weight"] = linears[part]
                if has_bias(config, part):
                    shapes[f"{layer}.{part}.bias"] = linears[part][:1]
            if group == "qkv" and config.qk_norm:
                shapes[f"{layer}.q_norm.weight"] = shapes[f"{layer}.k_norm.weight"] = (d,)
    _add_norm(shapes, config, "norm")
    if not config.tied_head:
        shapes["head.weight"] = (V, H)
    return shapes


def _add_norm(shapes, config, name):
    shapes[f"{name}.weight"] = (config.hidden_size,)
    if config.norm == "layer":
        shapes[f"{name}.bias"] = (config.hidden_size,)


def hf_module(config: ModelConfig, module: str) -> str:
    """The Hugging Face module of a canonical one: "layers.3.q" -> "model.layers.3.self_attn.q_proj"."""
    names = _HF_GPT2 if config.family == "gpt2" else _HF_ROTARY
    if not module.startswith("layers."):
        return names[module]
    _, i, part = module.split(".")
    return f"{'transformer.h' if config.family == 'gpt2' else 'model.layers'}.{i}.{names[part]}"


def hf_name(config: ModelConfig, name: str) -> str:
    """The Hugging Face checkpoint's name of a canonical tensor."""
    module, kind = name.rsplit(".", 1)
    return f"{hf_module(config, module)}.{kind}"


def hf_transposed(config: ModelConfig, name: str) -> bool:
    """Whether Hugging Face stores the canonical tensor as [in, out] (GPT-2's Conv1D)."""
    part = name.split(".")[-2]
    return config.family == "gpt2" and name.endswith(".weight") and part in ("qkv", "o", "up", "down")


def peft_name(config: ModelConfig, layer: int, part: str) -> str:
    """The module that PEFT would adapt: "model.layers.3.self_attn.q_proj", "transformer.h.3.attn.c_attn"."""
    if part not in linear_shapes(config):
        raise ValueError(f"part = {part!r} is not a linear of family {config.family}; "
                         f"accepted: {', '.join(linear_shapes(config))}")
    return hf_module(config, f"layers.{layer}.{part}")
