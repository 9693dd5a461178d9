"""SmolLM3: every fourth layer, or those that the config names, without rotations (NoPE, Yang et al. 2025, arXiv:2501.18795)."""

from dataclasses import replace

from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import check_size, read_flag, read_size
from dynadapt.model.rope_settings import read_rope
from dynadapt.model.sliding import qwen_windows_to_hf, read_window, read_windows

from . import rotary

EVERY = 4
_READ = "attention_bias layer_types mlp_bias no_rope_layer_interval no_rope_layers use_sliding_window"


def rotated(layers: int, every: int = EVERY) -> tuple[bool, ...]:
    """Rotations in all layers but each `every`-th; () where those are all."""
    return _unless_all((i + 1) % every != 0 for i in range(layers))


def _unless_all(flags):
    found = tuple(flags)
    return () if all(found) else found


def from_hf(raw, _):
    max_positions = read_size(raw, "max_position_embeddings", 32768)
    config = rotary.from_hf(
        raw,
        "smollm3",
        max_positions=max_positions,
        kv_heads=4,
        tokens=(128000, 128001),
        null=("num_key_value_heads",),
        tied=True,
        rope=read_rope(raw, max_positions, 2e6),
        attention_bias=read_flag(raw, "attention_bias", False),
        mlp_bias=read_flag(raw, "mlp_bias", False),
    )
    config = replace(config, rotated=_rotated(raw, config.layers))
    # layer_types alone, without use_sliding_window, slides in some of transformers' attentions and not in others
    window = read_window(raw, None)
    if not read_flag(raw, "use_sliding_window", False):
        window = None
    slides = [window is not None and not config.rotates(i) for i in range(config.layers)]
    return replace(config, windows=read_windows(raw, window, slides, max_positions))


def _rotated(raw, layers):
    """As `no_rope_layers` says, 1 for a layer with rotations, else all layers but each `no_rope_layer_interval`-th have them."""
    every, given = check_size("no_rope_layer_interval", raw.get("no_rope_layer_interval", EVERY)), raw.get("no_rope_layers")
    if given is None:
        return rotated(layers, every)
    if not isinstance(given, list) or len(given) < layers or any(type(flag) is not int or flag not in (0, 1) for flag in given):
        raise ModelError(f"no_rope_layers = {str(given)[:80]} must be a list of at least num_hidden_layers = {layers}, each 0 or 1")
    return _unless_all(flag == 1 for flag in given[:layers])


def to_hf(config):
    own = {"no_rope_layers": [int(config.rotates(i)) for i in range(config.layers)]}
    own |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias, "pad_token_id": None}  # theirs is one of 128,256
    return rotary.to_hf(config) | own | qwen_windows_to_hf(config)


register(
    Family(
        name="smollm3",
        groups=rotary.GROUPS,
        hf_types={"smollm3": "SmolLM3ForCausalLM"},
        **rotary.HF,
        hf_keys={"smollm3": rotary.hf_keys(_READ, "max_window_layers")},
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=lambda metadata, common: rotary.from_gguf(metadata, common, rotated=rotated(common["layers"])),
        gguf_permuted=("q", "k"),
        has_bias=rotary.has_bias,
        tiny=rotary.TINY
        | dict(hidden_size=52, heads=4, kv_heads=2, head_dim=12, ffn_size=74, vocab_size=113, tied_head=True)
        | dict(layers=EVERY, rotated=rotated(EVERY)),
    )
)
