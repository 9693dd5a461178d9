"""Granite 3: a Llama with factors on embeddings, scores, logits, and on what attention and feed-forward add."""

from dataclasses import replace

from dynadapt.model.config import ModelConfig
from dynadapt.model.family import Family, register
from dynadapt.model.reading import SCALE_RANGE, check_number, read_flag
from dynadapt.model.sliding import read_window, refuse_sliding

from . import rotary

_READ = "attention_bias attention_multiplier embedding_multiplier layer_types logits_scaling mlp_bias residual_multiplier"


def usual_scale(config: ModelConfig) -> ModelConfig:
    """The same config, whose `attention_scale` is None where it is the usual one."""
    return replace(config, attention_scale=None) if config.attention_scale == config.head_dim**-0.5 else config


def from_hf(raw, _):
    factor = lambda key: check_number(key, raw.get(key, 1.0), *SCALE_RANGE)  # noqa: E731
    config = rotary.from_hf(
        raw,
        "granite",
        max_positions=2048,
        tokens=(1, 2),
        null=("num_key_value_heads",),
        attention_bias=read_flag(raw, "attention_bias", False),
        mlp_bias=read_flag(raw, "mlp_bias", False),
        embedding_scale=factor("embedding_multiplier"),
        residual_scale=factor("residual_multiplier"),
        logits_scaling=factor("logits_scaling"),
        attention_scale=factor("attention_multiplier"),
    )
    window = read_window(raw, None)  # its attention does not slide, the cache that transformers gives it does
    refuse_sliding(raw, window, window is not None, config.layers, config.max_positions)
    return usual_scale(config)


def to_hf(config: ModelConfig) -> dict:
    return rotary.to_hf(config) | {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": config.scores_scale,
        "logits_scaling": config.logits_scaling,
    }


def from_gguf(metadata, common: dict) -> ModelConfig:
    """As llama.cpp reads it: a factor of 0 or none says nothing, except that there must be one of the logits."""
    factor = lambda key: metadata.number(key, 0.0, SCALE_RANGE[1], 0.0)  # noqa: E731
    config = rotary.from_gguf(
        metadata,
        common,
        embedding_scale=factor("embedding_scale") or 1.0,
        residual_scale=factor("residual_scale") or 1.0,
        logits_scaling=metadata.number("logit_scale", *SCALE_RANGE),
        attention_scale=factor("attention.scale") or None,
    )
    return usual_scale(config)


register(
    Family(
        name="granite",
        groups=rotary.GROUPS,
        hf_types={"granite": "GraniteForCausalLM"},
        **rotary.HF,
        hf_keys={"granite": rotary.hf_keys(_READ, "max_window_layers", use_sliding_window=False)},
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=from_gguf,
        gguf_permuted=("q", "k"),
        gguf_keys=frozenset(["attention.scale", "embedding_scale", "logit_scale", "residual_scale"]),
        has_bias=rotary.has_bias,
        tiny=rotary.TINY
        | dict(hidden_size=60, heads=6, kv_heads=2, head_dim=10, ffn_size=84, vocab_size=113, tied_head=True)
        | dict(embedding_scale=6.0, residual_scale=0.22, attention_scale=0.125, logits_scaling=3.0),
    )
)
