"""What a decoder is: its sizes and the few choices in which the supported families differ."""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from dynadapt.model.errors import ModelError

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
NORMS = ("rms", "layer")
ACTIVATIONS = ("swiglu", "gelu_tanh", "gelu")
ROPE_TYPES = ("linear", "llama3", "factors")
MAX_LAYERS = 10_000  # a larger number can only be a damaged file


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a decoder-only transformer.

    `rope_theta` is None for learned positions (gpt2). `rope_scaling` is None or one of
    `{"rope_type": "linear", "factor"}`, `{"rope_type": "llama3", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings"}`, `{"rope_type": "factors", "factors": (head_dim/2 numbers)}`, the last being
    the frequency divisors that GGUF files carry. `max_positions` is the context the model was made for, in tokens.
    A value that does not fit raises ModelError naming the field.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    norm: str
    norm_eps: float
    activation: str
    rope_theta: float | None
    rope_scaling: dict | None = field(hash=False)
    max_positions: int
    tied_head: bool
    attention_bias: bool
    mlp_bias: bool
    qk_norm: bool
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self):
        _check_choice("family", self.family, FAMILIES)
        _check_choice("norm", self.norm, NORMS)
        _check_choice("activation", self.activation, ACTIVATIONS)
        for name in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn_size", "max_positions"):
            check_size(name, getattr(self, name))
        check_size("layers", self.layers, high=MAX_LAYERS)
        check_number("norm_eps", self.norm_eps, low=0.0, high=1.0)
        if self.heads % self.kv_heads:
            raise ModelError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        if self.family == "gpt2":
            self._check_gpt2()
        else:
            self._check_rotary()

    def _check_gpt2(self):
        if self.rope_theta is not None or self.rope_scaling is not None:
            raise ModelError("family gpt2 has learned positions: rope_theta and rope_scaling must be None")
        if self.heads * self.head_dim != self.hidden_size or self.kv_heads != self.heads:
            raise ModelError(f"family gpt2 needs heads * head_dim = hidden_size and kv_heads = heads, got {self.heads} * "
                             f"{self.head_dim}, hidden_size {self.hidden_size}, kv_heads {self.kv_heads}")

    def _check_rotary(self):
        check_number("rope_theta", self.rope_theta, low=1e-6, high=1e15)
        if self.head_dim % 2:
            raise ModelError(f"head_dim = {self.head_dim} is odd: rotary positions need an even one")
        check_rope_scaling(self.rope_scaling, self.head_dim)


def _check_choice(name, value, choices):
    if value not in choices:
        raise ModelError(f"{name} = {value!r} is not supported; accepted: {', '.join(choices)}")


def check_size(name: str, value, high: int = 2**31 - 1) -> int:
    """`value` if it is a whole number in 1..high, else a ModelError naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise ModelError(f"{name} = {value!r} must be a whole number in 1..{high}")
    return value


def check_number(name: str, value, low: float, high: float) -> float:
    """`value` as a float if it is a finite number in low..high, else a ModelError naming it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
        raise ModelError(f"{name} = {value!r} must be a number in {low:g}..{high:g}")
    return float(value)


def check_rope_scaling(scaling: dict | None, head_dim: int) -> None:
    """Raise ModelError unless `scaling` is None or one of the forms in ModelConfig's docstring."""
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    _check_choice("rope_scaling.rope_type", kind, ROPE_TYPES)
    if kind == "factors":
        factors = scaling.get("factors", ())
        if len(factors) != head_dim // 2:
            raise ModelError(f"rope_scaling.factors has {len(factors)} numbers; head_dim {head_dim} needs {head_dim // 2}")
        for factor in factors:
            check_number("rope_scaling.factors", factor, low=1e-6, high=1e9)
        return
    check_number("rope_scaling.factor", scaling.get("factor"), low=1e-6, high=1e9)
    if kind == "llama3":
        low = check_number("rope_scaling.low_freq_factor", scaling.get("low_freq_factor"), low=1e-6, high=1e9)
        high = check_number("rope_scaling.high_freq_factor", scaling.get("high_freq_factor"), low=1e-6, high=1e9)
        check_size("rope_scaling.original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
        if high <= low:
            raise ModelError(f"rope_scaling.high_freq_factor = {high} must be above low_freq_factor = {low}")


_TINY = {
    "llama": dict(hidden_size=60, heads=6, kv_heads=2, head_dim=10, ffn_size=84, vocab_size=131, tied_head=False),
    "qwen2": dict(hidden_size=56, heads=4, kv_heads=2, head_dim=14, ffn_size=76, vocab_size=101, tied_head=True),
    "qwen3": dict(hidden_size=44, heads=4, kv_heads=1, head_dim=16, ffn_size=70, vocab_size=117, tied_head=False),
    "gpt2": dict(hidden_size=36, heads=3, kv_heads=3, head_dim=12, ffn_size=100, vocab_size=109, tied_head=True),
}


def tiny_config(family: str, **changes) -> ModelConfig:
    """A small config of `family` with awkward sizes for tests (none a multiple of 32); `changes` replace fields."""
    _check_choice("family", family, FAMILIES)
    gpt2 = family == "gpt2"
    config = ModelConfig(
        family=family, layers=3, norm="layer" if gpt2 else "rms", norm_eps=1e-5 if gpt2 else 1e-6,
        activation="gelu_tanh" if gpt2 else "swiglu", rope_theta=None if gpt2 else 10000.0, rope_scaling=None,
        max_positions=128 if gpt2 else 512, attention_bias=family in ("gpt2", "qwen2"), mlp_bias=gpt2,
        qk_norm=family == "qwen3", bos_token_id=0, eos_token_id=1, **_TINY[family])
    return replace(config, **changes)
