"""GPT-NeoX and Pythia: attention and feed-forward side by side, LayerNorm, biases, heads rotated in part."""

from dynadapt.model.config import MAX_LAYERS, ModelConfig
from dynadapt.model.config_keys import Keys
from dynadapt.model.errors import ModelError
from dynadapt.model.family import Family, register
from dynadapt.model.reading import THETA_RANGE, check_number, read_flag, read_size, read_token
from dynadapt.model.rope_settings import PLACES, partial_factor, read_partial_rope, scaling_to_hf

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
_HF_MODULES = {
    "embed": "gpt_neox.embed_in",
    "norm": "gpt_neox.final_layer_norm",
    "head": "lm_head",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "qkv": "attention.query_key_value",
    "o": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
_KEYS = Keys(
    read=frozenset(
        """attention_bias bos_token_id compression_config eos_token_id hidden_act hidden_size intermediate_size layer_norm_eps
           max_position_embeddings num_attention_heads num_hidden_layers original_max_position_embeddings quantization_config rotary_emb_base
           rotary_pct tie_word_embeddings use_parallel_residual vocab_size""".split()
    )
    | set(PLACES)
)
CHOICES = dict(norm="layer", mlp_bias=True, qk_norm=False)


def from_hf(raw, _):
    act = raw.get("hidden_act", "gelu")
    if not isinstance(act, str) or act not in _ACTIVATIONS:
        raise ModelError(f"hidden_act = {act!r} is not supported for gpt_neox; accepted: {', '.join(_ACTIVATIONS)}")
    hidden, heads = read_size(raw, "hidden_size"), read_size(raw, "num_attention_heads")
    if hidden % heads or hidden // heads % 2:
        raise ModelError(f"num_attention_heads = {heads} does not divide hidden_size = {hidden} into heads of an even size")
    max_positions = read_size(raw, "max_position_embeddings", 2048)
    theta, scaling, rotary_dim = read_partial_rope(raw, max_positions, hidden // heads, ("rotary_emb_base", "rotary_pct"), 0.25)
    return ModelConfig(
        family="gptneox",
        **CHOICES,
        vocab_size=read_size(raw, "vocab_size"),
        hidden_size=hidden,
        layers=read_size(raw, "num_hidden_layers", high=MAX_LAYERS),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=read_size(raw, "intermediate_size"),
        norm_eps=check_number("layer_norm_eps", raw.get("layer_norm_eps", 1e-5), 0.0, 1.0),
        activation=_ACTIVATIONS[act],
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_dim=rotary_dim,
        max_positions=max_positions,
        attention_bias=read_flag(raw, "attention_bias", True),
        parallel_residual=read_flag(raw, "use_parallel_residual", True),
        tied_head=read_flag(raw, "tie_word_embeddings", False),
        bos_token_id=read_token(raw, "bos_token_id", 0),
        eos_token_id=read_token(raw, "eos_token_id", 2),
    )


def to_hf(config: ModelConfig) -> dict:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation],
        "max_position_embeddings": config.max_positions,
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": partial_factor(config.rotated_dims, config.head_dim),
        "rope_scaling": scaling_to_hf(config.rope_scaling),
        "attention_bias": config.attention_bias,
        "use_parallel_residual": config.parallel_residual,
    }


def from_gguf(metadata, common: dict) -> ModelConfig:
    """As llama.cpp reads it: its GELU is the tanh form."""
    return ModelConfig(
        **common,
        **CHOICES,
        activation="gelu_tanh",
        norm_eps=metadata.number("attention.layer_norm_epsilon", 0.0, 1.0),
        rope_theta=metadata.number("rope.freq_base", *THETA_RANGE, 10000.0),
        rope_scaling=metadata.rope_scaling(),
        rotary_dim=metadata.rotary_dim(common["head_dim"]),
        attention_bias="blk.0.attn_output.bias" in metadata.tensors,
        parallel_residual=metadata.flag("use_parallel_residual"),
    )


register(
    Family(
        name="gptneox",
        groups={"qkv": ("qkv",), "o": ("o",), "mlp_in": ("up",), "down": ("down",)},
        hf_types={"gpt_neox": "GPTNeoXForCausalLM"},
        hf_base="gpt_neox.",
        hf_layers="gpt_neox.layers",
        hf_modules=_HF_MODULES,
        hf_files={"head": "embed_out"},
        hf_heads_fused=True,
        hf_keys={"gpt_neox": _KEYS},
        from_hf=from_hf,
        to_hf=to_hf,
        from_gguf=from_gguf,
        gguf_keys=frozenset(["attention.layer_norm_epsilon", "use_parallel_residual"]),
        partial_rotary=True,
        equal_heads=True,
        has_bias=lambda config, part: config.mlp_bias if part in ("up", "down") else config.attention_bias,
        tiny=CHOICES
        | dict(hidden_size=48, layers=3, heads=3, kv_heads=3, head_dim=16, ffn_size=90, vocab_size=107, tied_head=False)
        | dict(norm_eps=1e-5, activation="gelu_tanh", attention_bias=True, max_positions=256, bos_token_id=0, eos_token_id=1)
        | dict(rope_theta=10000.0, rope_scaling=None, rotary_dim=6, parallel_residual=True),
    )
)
