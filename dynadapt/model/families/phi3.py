"""Phi-3 and Phi-4-mini: queries, keys and values are one linear, and so are gate and up; heads may be rotated in part."""

from dynadapt.model.config import MAX_LAYERS, ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import read_size
from dynadapt.model.rope_settings import partial_factor, read_partial_rope
from dynadapt.model.sliding import read_window

from . import rotary

_MODULES = rotary.HF_MODULES | {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"}


def from_hf(raw, _):
    max_positions = read_size(raw, "max_position_embeddings", 4096)
    read_size(raw, "original_max_position_embeddings", 4096)  # of longrope alone, but wrong is wrong
    head_dim = rotary.head_dim_of(raw, null=("head_dim",))
    theta, scaling, rotary_dim = read_partial_rope(raw, max_positions, head_dim)
    if scaling is not None:
        raise ModelError(f"rope_scaling of type {scaling['rope_type']} is not supported for phi3; accepted: none (type default)")
    return rotary.from_hf(
        raw,
        "phi3",
        max_positions=max_positions,
        tokens=(1, 32000),
        null=("head_dim", "num_key_value_heads"),
        eps=1e-5,
        rope=(theta, scaling),
        rotary_dim=rotary_dim,
        windows=_windows(read_window(raw, None), read_size(raw, "num_hidden_layers", high=MAX_LAYERS)),
    )


def _windows(window: int | None, layers: int) -> tuple[int | None, ...]:
    """The same in every layer."""
    if window == 1:
        raise ModelError("sliding_window = 1 is not supported; accepted: null, or at least 2 tokens")
    return () if window is None else (window,) * layers


def to_hf(config: ModelConfig) -> dict:
    sizes = set(config.windows)
    if len(sizes) > 1:
        raise ModelError(f"windows = {config.windows} have no Hugging Face form for phi3; accepted: the same in every layer")
    return rotary.to_hf(config) | {
        "partial_rotary_factor": partial_factor(config.rotated_dims, config.head_dim),
        "sliding_window": sizes.pop() if sizes else None,
        "pad_token_id": None,  # absent, it is one that a small vocabulary does not have
    }


register(
    Family(
        name="phi3",
        groups={"qkv": ("qkv",), "o": ("o",), "mlp_in": ("gate_up",), "down": ("down",)},
        hf_types={"phi3": "Phi3ForCausalLM"},
        **rotary.HF | {"hf_modules": _MODULES},
        hf_keys={"phi3": rotary.hf_keys("", "full_attn_mod interpolate_factor lm_head_bias", attention_bias=False, mlp_bias=False)},
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=lambda metadata, common: rotary.from_gguf(metadata, common, rotary_dim=metadata.rotary_dim(common["head_dim"])),
        partial_rotary=True,
        has_bias=rotary.has_bias,
        tiny=rotary.TINY
        | dict(hidden_size=54, heads=6, kv_heads=2, head_dim=14, ffn_size=74, vocab_size=119, tied_head=False, rotary_dim=10),
    )
)
