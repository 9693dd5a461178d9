"""Gemma 3 (text): norms on both sides of attention and feed-forward, most layers with a window and rotations of their own."""

from dynadapt.model.config import ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import SCALE_RANGE, THETA_RANGE, check_number, check_size, read_flag, read_size
from dynadapt.model.rope_settings import read_rope_by_kind
from dynadapt.model.sliding import read_window, windows_by_kind, windows_to_hf

from . import rotary

THETAS = 1e6, 1e4  # of layers without and with a window
EVERY = 6  # one layer in so many has no window
MODULES = rotary.HF_MODULES | {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_CHOICES = dict(activation="geglu_tanh", qk_norm=True, norm_place="both")
ACTIVATIONS = "hidden_activation", {"gelu_pytorch_tanh": "geglu_tanh"}
_READ = """attention_bias attn_logit_softcapping final_logit_softcapping hidden_activation layer_types query_pre_attn_scalar rope_local_base_freq sliding_window_pattern
           use_bidirectional_attention"""


def windows(window: int | None, layers: int, every: int = EVERY) -> tuple[int | None, ...]:
    """A window in all layers but each `every`-th."""
    found = tuple(window if (i + 1) % every else None for i in range(layers))
    return found if any(found) else ()


def choices(hidden_size: int, head_dim: int, scalar: int | None = None) -> dict:
    """What follows from the sizes: scores are divided by the root of `scalar`, which is mostly head_dim."""
    scale = None if scalar in (None, head_dim) else scalar**-0.5
    return _CHOICES | dict(embedding_scale=hidden_size**0.5, attention_scale=scale)


def from_hf(raw, _):
    max_positions, layers = read_size(raw, "max_position_embeddings", 131072), read_size(raw, "num_hidden_layers")
    theta, scaling, local = read_rope_by_kind(raw, max_positions, THETAS, "rope_local_base_freq")
    hidden, head_dim = read_size(raw, "hidden_size"), read_size(raw, "head_dim", 256)
    config = rotary.from_hf(
        raw,
        "gemma3",
        max_positions=max_positions,
        kv_heads=4,
        head_dim=head_dim,
        tokens=(2, 1),
        tied=True,
        activations=ACTIVATIONS,
        rope=(theta, scaling),
        attention_bias=read_flag(raw, "attention_bias", False),
        windows=_windows(raw, layers),
        window_rope_theta=local,
        **choices(hidden, head_dim, read_size(raw, "query_pre_attn_scalar", 256)),
        **dict(zip(("attention_softcap", "logits_softcap"), read_caps(raw, None, None))),
    )
    check_hf(raw, config)
    return config


def read_caps(raw, attention: float | None, logits: float | None) -> tuple[float | None, float | None]:
    """The soft-caps of scores and logits; what an absent key means is given, null is none."""
    keys = ("attn_logit_softcapping", attention), ("final_logit_softcapping", logits)
    found = [(key, raw.get(key, absent)) for key, absent in keys]
    first, second = (None if value is None else check_number(key, value, *SCALE_RANGE) for key, value in found)
    return first, second


def check_hf(raw, config: ModelConfig) -> None:
    """What transformers' configuration classes of Gemma refuse, and bidirectional attention."""
    if config.hidden_size % config.heads:
        raise ModelError(f"hidden_size = {config.hidden_size} is no multiple of num_attention_heads = {config.heads}")
    if raw.get("use_bidirectional_attention") not in (None, False):
        raise ModelError(f"use_bidirectional_attention = {raw['use_bidirectional_attention']!r} is not supported; accepted: false")


def _windows(raw, layers):
    """As `layer_types` says, else one layer in `sliding_window_pattern` has none."""
    every = check_size("sliding_window_pattern", raw.get("sliding_window_pattern", EVERY))
    return windows_by_kind(raw, read_window(raw, 4096), [(i + 1) % every != 0 for i in range(layers)], "gemma3")


def to_hf(config: ModelConfig) -> dict:
    raw = rotary.to_hf(config) | windows_to_hf(config, 4096)
    del raw["hidden_act"]
    return raw | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": round(config.scores_scale**-2),
        "final_logit_softcapping": config.logits_softcap,
        "attn_logit_softcapping": config.attention_softcap,
        **({"rope_local_base_freq": config.window_rope_theta} if config.family == "gemma3" else {}),
    }


def from_gguf(metadata, common: dict) -> ModelConfig:
    """As llama.cpp reads it: its norm weights are the ones that multiply, and the largest model alone, known by its 62 layers,
    divides scores by another root than that of head_dim."""
    hidden, layers, head_dim = common["hidden_size"], common["layers"], common["head_dim"]
    window, every = metadata.size("attention.sliding_window"), metadata.size("attention.sliding_window_pattern", EVERY)
    return rotary.from_gguf(
        metadata,
        common,
        windows=windows(window, layers, every),
        window_rope_theta=metadata.number("rope.freq_base_swa", *THETA_RANGE, THETAS[1]),
        **choices(hidden, head_dim, hidden // common["heads"] if layers == 62 else head_dim),
    )


register(
    Family(
        name="gemma3",
        groups=rotary.GROUPS,
        hf_types={"gemma3_text": "Gemma3ForCausalLM"},
        **rotary.HF | {"hf_modules": MODULES},
        hf_keys={"gemma3_text": rotary.hf_keys(_READ, "_sliding_window_pattern cache_implementation", mlp_bias=False)},
        hf_norm_offset=1.0,
        rate_factors={"lora": 1 / 8, "rows": 1 / 8, "full": 1 / 8},
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=from_gguf,
        gguf_keys=frozenset(["attention.sliding_window_pattern", "rope.freq_base_swa"]),
        windowed=True,
        has_bias=rotary.has_bias,
        tiny=rotary.TINY
        | choices(44, 14)
        | dict(hidden_size=44, heads=4, kv_heads=2, head_dim=14, ffn_size=70, vocab_size=115, tied_head=True, rope_theta=1e6)
        | dict(windows=windows(7, 3, 2), window_rope_theta=1e4),
    )
)
