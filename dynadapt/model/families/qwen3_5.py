"""Qwen3.5 (text, dense): three layers of the gated delta rule to one of attention, which has a gate; heads rotated in part."""

from dynadapt.model.config import MAX_LAYERS, ModelConfig
from dynadapt.model.delta_layers import DeltaLayers
from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import check_size, read_flag, read_size
from dynadapt.model.rope_settings import PLACES, partial_factor, read_partial_rope

from . import rotary

LINEAR, FULL = "linear_attention", "full_attention"
EVERY = 4  # one layer in so many has attention
_DELTA = {
    "delta_qkv": "linear_attn.in_proj_qkv",
    "delta_z": "linear_attn.in_proj_z",
    "delta_b": "linear_attn.in_proj_b",
    "delta_a": "linear_attn.in_proj_a",
    "delta_o": "linear_attn.out_proj",
}
_MODULES = rotary.HF_MODULES | _DELTA | {"convolution": "linear_attn.conv1d", "delta": "linear_attn", "delta_norm": "linear_attn.norm"}
_SIZES = {  # of a file that has no such key, as transformers takes them
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_READ = " ".join([*_SIZES, "attention_bias layer_types full_attention_interval"])
# Of the further layers that draft tokens, and the dtype of a state that is float32 here as there.
_IGNORED = "mtp_num_hidden_layers mtp_use_dedicated_embeddings mamba_ssm_dtype"


def from_hf(raw, _):
    max_positions, head_dim = read_size(raw, "max_position_embeddings", 32768), read_size(raw, "head_dim", 256)
    theta, scaling, rotary_dim = read_partial_rope(_one_axis(raw), max_positions, head_dim, absent=0.25)
    return rotary.from_hf(
        raw,
        "qwen3_5",
        max_positions=max_positions,
        kv_heads=4,
        head_dim=head_dim,
        rope=(theta, scaling),
        rotary_dim=rotary_dim,
        qk_norm=True,
        attention_gate=True,
        attention_bias=read_flag(raw, "attention_bias", False),
        delta=_delta(raw),
    )


def _one_axis(raw):
    """Without the settings of positions on three axes, which are one for text: each section then has that axis' own angles."""
    sets = {place: raw[place] for place in PLACES if isinstance(raw.get(place), dict)}
    for place, rope in sets.items():
        section = rope.get("mrope_section", [11, 11, 10])
        whole = isinstance(section, list) and len(section) == 3 and all(type(n) is int and n >= 0 for n in section)
        if not whole or not isinstance(rope.get("mrope_interleaved", True), bool):
            name = "mrope_interleaved" if whole else "mrope_section"
            raise ModelError(f"{place}.{name} = {rope[name]!r} is not supported; accepted: three whole numbers, true or false, or absent")
    return raw | {place: {k: v for k, v in rope.items() if not k.startswith("mrope_")} for place, rope in sets.items()}


def _delta(raw) -> DeltaLayers:
    key_heads, value_heads, key_dim, value_dim, taps = (read_size(raw, key, absent, high=2**20) for key, absent in _SIZES.items())
    if value_heads % key_heads:
        raise ModelError(f"linear_num_value_heads = {value_heads} is no multiple of linear_num_key_heads = {key_heads}")
    return DeltaLayers(_layers(raw), key_heads, value_heads, key_dim, value_dim, taps)


def _layers(raw) -> tuple[bool, ...]:
    """As `layer_types` says, else one layer in `full_attention_interval` has attention."""
    layers, kinds = read_size(raw, "num_hidden_layers", high=MAX_LAYERS), raw.get("layer_types")
    if kinds is None:
        every = check_size("full_attention_interval", raw.get("full_attention_interval", EVERY))
        kinds = [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or {str(kind) for kind in kinds} != {LINEAR, FULL}:
        raise ModelError(
            f"layer_types = {str(kinds)[:80]} (or full_attention_interval) must give num_hidden_layers = {layers} layers, each of {LINEAR} "
            f"or {FULL}, and at least one of either"
        )
    return tuple(kind == LINEAR for kind in kinds)


def to_hf(config: ModelConfig) -> dict:
    delta = config.delta
    assert delta is not None, "every config of this family has such layers"
    sizes = delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim, delta.taps
    return rotary.to_hf(config) | {
        **dict(zip(_SIZES, sizes)),
        "layer_types": [LINEAR if is_delta else FULL for is_delta in delta.layers],
        "attention_bias": config.attention_bias,
        "partial_rotary_factor": partial_factor(config.rotated_dims, config.head_dim),
    }


register(
    Family(
        name="qwen3_5",
        groups=rotary.GROUPS,
        delta_groups=rotary.GROUPS | {"qkv": ("delta_qkv", "delta_z", "delta_b", "delta_a"), "o": ("delta_o",)},
        hf_types={"qwen3_5_text": "Qwen3_5ForCausalLM"},
        hf_around={"qwen3_5": "qwen3_5_text"},
        hf_inner="model.language_model.",
        hf_beside=("model.visual.", "mtp."),
        **rotary.HF | {"hf_modules": _MODULES},
        hf_keys={"qwen3_5_text": rotary.hf_keys(_READ, _IGNORED, attn_output_gate=True, mlp_bias=False, mlp_only_layers=[])},
        hf_norm_offset=1.0,
        hf_plain_norms=("delta_norm",),
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=None,
        partial_rotary=True,
        has_bias=lambda config, part: part in ("q", "k", "v", "o") and config.attention_bias,
        tiny=rotary.TINY
        | dict(hidden_size=44, heads=4, kv_heads=2, head_dim=24, ffn_size=70, vocab_size=113, tied_head=False, rotary_dim=6)
        | dict(qk_norm=True, attention_gate=True, delta=DeltaLayers((True, False, True), 2, 4, 10, 6, 4)),
    )
)
