"""Qwen3: queries and keys of each head are normalised before they are rotated."""

from dataclasses import replace

from dynadapt.model.family import Family, register
from dynadapt.model.reading import read_flag
from dynadapt.model.sliding import qwen_windows_to_hf, read_qwen_windows

from . import rotary


def from_hf(raw, _):
    config = rotary.from_hf(
        raw,
        "qwen3",
        max_positions=32768,
        kv_heads=32,
        head_dim=128,
        null=("num_key_value_heads",),
        qk_norm=True,
        attention_bias=read_flag(raw, "attention_bias", False),
    )
    return replace(config, windows=read_qwen_windows(raw, config.layers, config.max_positions))


register(
    Family(
        name="qwen3",
        groups=rotary.GROUPS,
        hf_types={"qwen3": "Qwen3ForCausalLM"},
        **rotary.HF,
        hf_keys={"qwen3": rotary.hf_keys("attention_bias layer_types max_window_layers use_sliding_window", mlp_bias=False)},
        from_hf=from_hf,
        to_hf=lambda config: rotary.to_hf(config) | {"attention_bias": config.attention_bias} | qwen_windows_to_hf(config),
        from_gguf=lambda metadata, common: rotary.from_gguf(metadata, common, qk_norm=True),
        has_bias=rotary.has_bias,
        tiny=rotary.TINY
        | dict(hidden_size=44, heads=4, kv_heads=1, head_dim=16, ffn_size=70, vocab_size=117, tied_head=False, qk_norm=True),
    )
)
