"""OLMo 2 and 3: norms behind attention and feed-forward alone, queries and keys normalised over all heads (arXiv 2501.00656). In OLMo 3
most layers have a sliding window, and rotations that are not scaled."""

from __future__ import annotations

from dataclasses import replace

from dynadapt.model.config import ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import read_flag, read_size
from dynadapt.model.rope_settings import read_rope, read_rope_by_kind
from dynadapt.model.sliding import read_window, refuse_sliding, slid, windows_by_kind, windows_to_hf

from . import rotary

THETA = 5e5  # of OLMo 3, where a file has none
EVERY = 4  # one layer in so many has no window
_MODULES = {name: module for name, module in rotary.HF_MODULES.items() if name not in ("attn_norm", "mlp_norm")}
_MODULES |= {"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
_CHOICES = dict(qk_norm=True, qk_norm_span="all", norm_place="after")


def from_hf(raw, model_type):
    max_positions, layers = read_size(raw, "max_position_embeddings", 2048), read_size(raw, "num_hidden_layers")
    own = {}
    if model_type == "olmo3":
        theta, scaling, windowed = read_rope_by_kind(raw, max_positions, (THETA, THETA), None)
        window = read_window(raw, 4096)
        if window is None:
            raise ModelError("sliding_window = None is not supported for olmo3; accepted: at least 2 tokens")
        windows = windows_by_kind(raw, window, [(i + 1) % EVERY != 0 for i in range(layers)], "olmo3")
        own = dict(windows=windows, window_rope_theta=_apart(windows, theta, scaling, windowed))
    else:
        theta, scaling = read_rope(raw, max_positions)
        refuse_sliding(raw, read_window(raw, None), layers, max_positions)
    return rotary.from_hf(
        raw,
        "olmo2",
        max_positions=max_positions,
        tokens=(None, 50279),
        null=("num_key_value_heads",),
        rope=(theta, scaling),
        eps=1e-5,
        attention_bias=read_flag(raw, "attention_bias", False),
        **_CHOICES,
        **own,
    )


def _apart(windows, theta, scaling, windowed) -> float | None:
    """`ModelConfig.window_rope_theta`: None where layers with a window are rotated as the others are."""
    return windowed if windows and (scaling is not None or windowed != theta) else None


def to_hf(config: ModelConfig) -> dict:
    """An OLMo 3 where layers have a window."""
    raw = rotary.to_hf(config) | {"attention_bias": config.attention_bias}
    if not config.windows:
        return raw
    theta, scaling = raw.pop("rope_theta"), raw.pop("rope_scaling")
    if scaling is not None and config.window_rope_theta is None:
        raise ModelError("rope_scaling in layers with a window has no Hugging Face form in family olmo2; accepted: a window_rope_theta")
    windowed = theta if config.window_rope_theta is None else config.window_rope_theta
    kinds = {"full_attention": (scaling or {"rope_type": "default"}) | {"rope_theta": theta}}
    kinds["sliding_attention"] = {"rope_type": "default", "rope_theta": windowed}
    named = {"model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "rope_parameters": kinds}
    return raw | windows_to_hf(config) | named


def from_gguf(metadata, common: dict) -> ModelConfig:
    """As llama.cpp reads it: with a window, each fourth layer has none, and the others have the same rotations without their scaling."""
    config = rotary.from_gguf(metadata, common, **_CHOICES)
    window, layers = metadata.size("attention.sliding_window", 0), common["layers"]
    slides = [(i + 1) % EVERY != 0 for i in range(layers)]
    key = f"{metadata.architecture}.attention.sliding_window_pattern"
    pattern = metadata.metadata.get(key, EVERY)
    if pattern != EVERY and (not isinstance(pattern, list) or [bool(slid) for slid in pattern] != slides):
        raise ModelError(f"{key} = {str(pattern)[:80]} is not supported; accepted: {EVERY}, or a window in all layers but each fourth")
    windows = slid(window, slides) if window and any(slides) else ()
    return replace(config, windows=windows, window_rope_theta=_apart(windows, config.rope_theta, config.rope_scaling, config.rope_theta))


register(
    Family(
        name="olmo2",
        groups=rotary.GROUPS,
        hf_types={"olmo2": "Olmo2ForCausalLM", "olmo3": "Olmo3ForCausalLM"},
        **rotary.HF | {"hf_modules": _MODULES},
        hf_keys={
            "olmo2": rotary.hf_keys("attention_bias", mlp_bias=False),
            "olmo3": rotary.hf_keys("attention_bias layer_types", mlp_bias=False),
        },
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=from_gguf,
        gguf_keys=frozenset(["attention.sliding_window_pattern"]),
        windowed=True,
        has_bias=rotary.has_bias,
        tiny=rotary.TINY | _CHOICES | dict(hidden_size=44, heads=4, kv_heads=2, head_dim=10, ffn_size=70, vocab_size=119, tied_head=False),
    )
)
