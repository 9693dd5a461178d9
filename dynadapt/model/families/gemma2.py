"""Gemma 2: Gemma 3's norms, scales and GEGLU without norms of heads, a window in every other layer, soft-caps on scores and logits."""

from dynadapt.model.config import ModelConfig
from dynadapt.model.family import Family, register
from dynadapt.model.reading import SCALE_RANGE, read_flag, read_size
from dynadapt.model.sliding import read_window, read_windows, slid

from . import gemma3, rotary

CAPS = 50.0, 30.0  # of scores and logits
WINDOW = 4096
_READ = """attention_bias attn_logit_softcapping final_logit_softcapping hidden_activation layer_types query_pre_attn_scalar
           use_bidirectional_attention"""


def slides(layers: int) -> list[bool]:
    """The first of every two layers has a window."""
    return [i % 2 == 0 for i in range(layers)]


def choices(hidden_size: int, head_dim: int, scalar: int | None = None, caps: tuple[float | None, float | None] = CAPS) -> dict:
    """What follows from the sizes; ``caps`` of scores and logits."""
    attention, logits = caps
    return gemma3.choices(hidden_size, head_dim, scalar) | dict(qk_norm=False, attention_softcap=attention, logits_softcap=logits)


def from_hf(raw, _):
    max_positions, layers = read_size(raw, "max_position_embeddings", 8192), read_size(raw, "num_hidden_layers")
    hidden, head_dim = read_size(raw, "hidden_size"), read_size(raw, "head_dim", 256)
    config = rotary.from_hf(
        raw,
        "gemma2",
        max_positions=max_positions,
        kv_heads=4,
        head_dim=head_dim,
        tokens=(2, 1),
        tied=True,
        activations=gemma3.ACTIVATIONS,
        attention_bias=read_flag(raw, "attention_bias", False),
        windows=read_windows(raw, read_window(raw, WINDOW), slides(layers), max_positions),
        **choices(hidden, head_dim, read_size(raw, "query_pre_attn_scalar", 256), gemma3.read_caps(raw, *CAPS)),
    )
    gemma3.check_hf(raw, config)
    return config


def from_gguf(metadata, common: dict) -> ModelConfig:
    """As llama.cpp reads it; the largest model alone, known by its 46 layers, divides scores by another root than that of head_dim."""
    hidden, layers, head_dim = common["hidden_size"], common["layers"], common["head_dim"]
    window = metadata.size("attention.sliding_window", WINDOW)
    keys = zip(("attn_logit_softcapping", "final_logit_softcapping"), CAPS)
    attention, logits = (metadata.number(key, *SCALE_RANGE, absent) for key, absent in keys)
    return rotary.from_gguf(
        metadata,
        common,
        windows=slid(window, slides(layers)) if window < common["max_positions"] else (),
        **choices(hidden, head_dim, hidden // common["heads"] if layers == 46 else head_dim, (attention, logits)),
    )


register(
    Family(
        name="gemma2",
        groups=rotary.GROUPS,
        hf_types={"gemma2": "Gemma2ForCausalLM"},
        **rotary.HF | {"hf_modules": gemma3.MODULES},
        hf_keys={"gemma2": rotary.hf_keys(_READ, "cache_implementation", mlp_bias=False)},
        hf_norm_offset=1.0,
        from_hf=from_hf,
        to_hf=gemma3.to_hf,
        from_gguf=from_gguf,
        gguf_keys=frozenset(["attn_logit_softcapping", "final_logit_softcapping"]),
        windowed=True,
        has_bias=rotary.has_bias,
        tiny=rotary.TINY
        | choices(44, 14, None, (2.0, 3.0))  # low enough to be felt
        | dict(hidden_size=44, heads=4, kv_heads=2, head_dim=14, ffn_size=70, vocab_size=115, tied_head=True)
        | dict(windows=slid(7, slides(3))),
    )
)
