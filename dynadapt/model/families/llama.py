"""Llama, and what is a Llama in all but name: SmolLM2, and Mistral, whose layers may all have a sliding window."""

from dataclasses import replace

from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import read_flag
from dynadapt.model.sliding import read_window, read_windows, refuse_sliding, windows_to_hf

from . import rotary

_KEYS = {
    "llama": rotary.hf_keys("attention_bias layer_types mlp_bias", "max_window_layers", use_sliding_window=False),
    "mistral": rotary.hf_keys(attention_bias=False, mlp_bias=False),
}


def from_hf(raw, model_type):
    if model_type == "mistral":
        config = rotary.from_hf(raw, "llama", max_positions=131072, kv_heads=8, tokens=(1, 2), null=("head_dim",))
        window = read_window(raw, 4096)
        return replace(config, windows=read_windows(raw, window, [window is not None] * config.layers, config.max_positions))
    config = rotary.from_hf(
        raw,
        "llama",
        max_positions=2048,
        tokens=(1, 2),
        null=("head_dim", "num_key_value_heads"),
        attention_bias=read_flag(raw, "attention_bias", False),
        mlp_bias=read_flag(raw, "mlp_bias", False),
    )
    refuse_sliding(raw, read_window(raw, None), config.layers, config.max_positions)
    return config


def to_hf(config):
    """A Mistral where layers have a window: all have the same, and no linear a bias."""
    if not config.windows:
        return rotary.to_hf(config) | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    if None in config.windows or config.attention_bias or config.mlp_bias:
        raise ModelError(
            f"windows = {config.windows}, attention_bias = {config.attention_bias}, mlp_bias = {config.mlp_bias} have no Hugging Face form "
            "in family llama; accepted with a window: the same one in every layer, and no biases"
        )
    window = windows_to_hf(config)["sliding_window"]
    return rotary.to_hf(config) | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}


register(
    Family(
        name="llama",
        groups=rotary.GROUPS,
        hf_types={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
        **rotary.HF,
        hf_keys=_KEYS,
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=rotary.from_gguf,
        gguf_permuted=("q", "k"),
        has_bias=rotary.has_bias,
        tiny=rotary.TINY | dict(hidden_size=60, heads=6, kv_heads=2, head_dim=10, ffn_size=84, vocab_size=131, tied_head=False),
    )
)
