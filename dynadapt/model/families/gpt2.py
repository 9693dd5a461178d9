"""GPT-2: learned positions, LayerNorm, one fused projection for queries, keys and values, weights stored as [in, out]."""

from dynadapt.model.config import MAX_LAYERS, ModelConfig
from dynadapt.model.config_keys import Keys
from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import check_number, check_size, read_flag, read_size, read_token

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu"}
_HF_MODULES = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attn_norm": "ln_1",
    "mlp_norm": "ln_2",
    "qkv": "attn.c_attn",
    "o": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
CHOICES = dict(norm="layer", rope_theta=None, rope_scaling=None, attention_bias=True, mlp_bias=True, qk_norm=False)
_KEYS = Keys(
    read=frozenset(
        """activation_function bos_token_id compression_config eos_token_id hidden_size layer_norm_epsilon
                      max_position_embeddings n_embd n_head n_inner n_layer n_positions num_attention_heads num_hidden_layers
                      quantization_config tie_word_embeddings vocab_size""".split()
    ),
    ignored=frozenset(
        """afn n_ctx n_special predict_special_tokens reorder_and_upcast_attn summary_activation
                         summary_first_dropout summary_proj_to_labels summary_type summary_use_proj""".split()
    ),
    neutral={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
)


def from_hf(raw, _):
    act = raw.get("activation_function", "gelu_new")
    if not isinstance(act, str) or act not in _ACTIVATIONS:
        raise ModelError(f"activation_function = {act!r} is not supported for gpt2; accepted: {', '.join(_ACTIVATIONS)}")
    hidden, heads = _size(raw, "n_embd", "hidden_size"), _size(raw, "n_head", "num_attention_heads")
    if hidden % heads:
        raise ModelError(f"n_head (num_attention_heads) = {heads} does not divide n_embd (hidden_size) = {hidden}")
    inner = raw.get("n_inner")
    return ModelConfig(
        family="gpt2",
        **CHOICES,
        vocab_size=read_size(raw, "vocab_size"),
        hidden_size=hidden,
        layers=_size(raw, "n_layer", "num_hidden_layers", MAX_LAYERS),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=4 * hidden if inner is None else check_size("n_inner", inner),
        norm_eps=check_number("layer_norm_epsilon", raw.get("layer_norm_epsilon", 1e-5), 0.0, 1.0),
        activation=_ACTIVATIONS[act],
        max_positions=_size(raw, "n_positions", "max_position_embeddings"),
        tied_head=read_flag(raw, "tie_word_embeddings", True),
        bos_token_id=read_token(raw, "bos_token_id", 50256),
        eos_token_id=read_token(raw, "eos_token_id", 50256),
    )


def _size(raw, key, alias, high=2**31 - 1):
    """transformers sets the alias last, so that it wins where both are given."""
    if alias in raw and key in raw:
        check_size(key, raw[key])
    return read_size(raw, alias if alias in raw else key, high=high)


def to_hf(config):
    return {
        "n_embd": config.hidden_size,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ffn_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
    }


def from_gguf(metadata, common):
    return ModelConfig(**{**common, **CHOICES}, activation="gelu_tanh", norm_eps=metadata.number("attention.layer_norm_epsilon", 0.0, 1.0))


register(
    Family(
        name="gpt2",
        groups={"qkv": ("qkv",), "o": ("o",), "mlp_in": ("up",), "down": ("down",)},
        hf_types={"gpt2": "GPT2LMHeadModel"},
        hf_base="transformer.",
        hf_layers="transformer.h",
        hf_modules=_HF_MODULES,
        hf_keys={"gpt2": _KEYS},
        hf_transposed=("qkv", "o", "up", "down"),
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=from_gguf,
        has_bias=lambda config, part: config.mlp_bias if part in ("up", "down") else config.attention_bias,
        learned_positions=True,
        equal_heads=True,
        tiny=CHOICES
        | dict(hidden_size=36, layers=3, heads=3, kv_heads=3, head_dim=12, ffn_size=100, vocab_size=109, tied_head=True)
        | dict(norm_eps=1e-5, activation="gelu_tanh", max_positions=128, bos_token_id=0, eos_token_id=1),
    )
)
