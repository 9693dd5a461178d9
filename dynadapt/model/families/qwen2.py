"""Qwen2 and Qwen2.5: biases on queries, keys and values, none on the attention's output."""

from dataclasses import replace

from dynadapt.model.family import Family, register
from dynadapt.model.sliding import qwen_windows_to_hf, read_qwen_windows

from . import rotary


def from_hf(raw, _):
    config = rotary.from_hf(raw, "qwen2", max_positions=32768, kv_heads=32, null=("num_key_value_heads",), attention_bias=True)
    return replace(config, windows=read_qwen_windows(raw, config.layers, config.max_positions))


register(
    Family(
        name="qwen2",
        groups=rotary.GROUPS,
        hf_types={"qwen2": "Qwen2ForCausalLM"},
        **rotary.HF,
        hf_keys={"qwen2": rotary.hf_keys("layer_types max_window_layers use_sliding_window", "attention_bias", mlp_bias=False)},
        from_hf=from_hf,
        to_hf=lambda config: rotary.to_hf(config) | qwen_windows_to_hf(config),
        from_gguf=lambda metadata, common: rotary.from_gguf(metadata, common, attention_bias=True),
        has_bias=lambda config, part: part != "o" and rotary.has_bias(config, part),
        tiny=rotary.TINY
        | dict(hidden_size=56, heads=4, kv_heads=2, head_dim=14, ffn_size=76, vocab_size=101, tied_head=True, attention_bias=True),
    )
)
