"""What the families with rotary positions, RMSNorm and a gated feed-forward share."""

from __future__ import annotations

from collections.abc import Mapping

from dynadapt.model.config import MAX_LAYERS, ModelConfig
from dynadapt.model.config_keys import Keys
from dynadapt.model.errors import ModelError
from dynadapt.model.reading import THETA_RANGE, check_number, check_size, read_flag, read_size, read_token
from dynadapt.model.rope_settings import PLACES, read_rope, scaling_to_hf

GROUPS = {"qkv": ("q", "k", "v"), "o": ("o",), "mlp_in": ("gate", "up"), "down": ("down",)}
HF_MODULES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
HF = {"hf_base": "model.", "hf_layers": "model.layers", "hf_modules": HF_MODULES}
_READ = frozenset(
    """
    bos_token_id compression_config eos_token_id head_dim hidden_act hidden_size intermediate_size
    max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings
    partial_rotary_factor quantization_config rms_norm_eps rope_theta sliding_window tie_word_embeddings vocab_size
""".split()
) | set(PLACES)
_IGNORED = frozenset(["pretraining_tp"])
_NEUTRAL = {"rope_interleaved": False, "use_mrope": False}
CHOICES = dict(norm="rms", activation="swiglu", attention_bias=False, mlp_bias=False, qk_norm=False)
TINY = CHOICES | dict(layers=3, norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, max_positions=512, bos_token_id=0, eos_token_id=1)


def hf_keys(read: str = "", ignored: str = "", **neutral) -> Keys:
    """The keys of a rotary family: those that all of them have, and its own."""
    return Keys(_READ | set(read.split()), _IGNORED | set(ignored.split()), _NEUTRAL | neutral)


def has_bias(config: ModelConfig, part: str) -> bool:
    """Biases on all linears of the attention, or of the feed-forward, or neither."""
    return config.mlp_bias if part in ("gate", "up", "down") else config.attention_bias


def from_hf(
    raw: Mapping,
    family: str,
    max_positions: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    tokens: tuple[int | None, int | None] = (None, None),
    null: tuple[str, ...] = (),
    tied: bool = False,
    activations: tuple[str, dict[str, str]] = ("hidden_act", {"silu": "swiglu", "swish": "swiglu"}),
    rope: tuple[float, dict | None] | None = None,
    eps: float = 1e-6,
    **choices,
) -> ModelConfig:
    """The config of a config.json, its sliding windows aside. Where the file has no such key, `max_positions`, `kv_heads`
    (None: as many as heads), `head_dim` (None: hidden_size / heads), `tied`, `eps` and `tokens` (begin, end) are what transformers
    takes, and the first of `activations`: the key, and what its values are called here. Keys in `null` may be null, which is None.
    `rope`: (theta, scaling), where the family reads them otherwise."""
    key, known = activations
    act = raw.get(key, next(iter(known)))
    if not isinstance(act, str) or act not in known:
        raise ModelError(f"{key} = {act!r} is not supported for {family}; accepted: {next(iter(known))}")
    heads, hidden, head_dim = read_size(raw, "num_attention_heads"), read_size(raw, "hidden_size"), head_dim_of(raw, head_dim, null)
    kv_heads = _or_null(raw, "num_key_value_heads", kv_heads, null) or heads
    if heads % kv_heads:
        raise ModelError(f"num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}")
    max_positions = read_size(raw, "max_position_embeddings", max_positions)
    theta, scaling = rope or read_rope(raw, max_positions)
    fields = CHOICES | dict(
        family=family,
        vocab_size=read_size(raw, "vocab_size"),
        hidden_size=hidden,
        layers=read_size(raw, "num_hidden_layers", high=MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=read_size(raw, "intermediate_size"),
        activation=known[act],
        norm_eps=check_number("rms_norm_eps", raw.get("rms_norm_eps", eps), 0.0, 1.0),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=max_positions,
        tied_head=read_flag(raw, "tie_word_embeddings", tied),
        bos_token_id=read_token(raw, "bos_token_id", tokens[0]),
        eos_token_id=read_token(raw, "eos_token_id", tokens[1]),
    )
    return ModelConfig(**{**fields, **choices})


def head_dim_of(raw: Mapping, absent: int | None = None, null: tuple[str, ...] = ()) -> int:
    """`head_dim`; `absent` where there is no such key, and without that, or for null where it may be null, hidden_size / heads."""
    heads, hidden = read_size(raw, "num_attention_heads"), read_size(raw, "hidden_size")
    head_dim = _or_null(raw, "head_dim", absent, null)
    if head_dim is None:
        if hidden % heads:
            raise ModelError(f"num_attention_heads = {heads} does not divide hidden_size = {hidden}")
        head_dim = hidden // heads
    return head_dim


def _or_null(raw, key, absent, null):
    value = raw.get(key, absent)
    return None if value is None and (key in null or key not in raw) else check_size(key, value)


def to_hf(config: ModelConfig) -> dict:
    """The keys of a config.json that all rotary families share."""
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling_to_hf(config.rope_scaling),
    }


def from_gguf(metadata, common: dict, **choices) -> ModelConfig:
    """The config of a GGUF file whose architecture is a rotary family."""
    fields = CHOICES | dict(
        norm_eps=metadata.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_theta=metadata.number("rope.freq_base", *THETA_RANGE, 10000.0),
        rope_scaling=metadata.rope_scaling(),
        attention_bias="blk.0.attn_output.bias" in metadata.tensors,
        mlp_bias="blk.0.ffn_up.bias" in metadata.tensors,
    )
    return ModelConfig(**{**common, **fields, **choices})
