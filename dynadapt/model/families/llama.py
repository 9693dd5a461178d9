"""Llama, and what is a Llama in all but name: SmolLM2, Mistral without a sliding window."""
from dynadapt.model.families import rotary
from dynadapt.model.family import Family, register
from dynadapt.model.reading import read_flag


def from_hf(raw, model_type):
    if model_type == "mistral":
        config = rotary.from_hf(raw, "llama")
        rotary.refuse_sliding_window(raw.get("sliding_window", 4096), config, raw.get("layer_types"))
        return config
    config = rotary.from_hf(raw, "llama", attention_bias=read_flag(raw, "attention_bias", False),
                            mlp_bias=read_flag(raw, "mlp_bias", False))
    if isinstance(raw.get("layer_types"), list):
        rotary.refuse_sliding_window(raw.get("sliding_window"), config, raw["layer_types"])
    return config


register(Family(
    name="llama", groups=rotary.GROUPS, hf_types={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}, **rotary.HF,
    from_hf=from_hf,
    to_hf=lambda config: rotary.to_hf(config) | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias},
    from_gguf=rotary.from_gguf, gguf_permuted=("q", "k"), has_bias=rotary.has_bias,
    tiny=rotary.TINY | dict(hidden_size=60, heads=6, kv_heads=2, head_dim=10, ffn_size=84, vocab_size=131, tied_head=False)))
