"""What a decoder is: its sizes and the few choices in which the supported families differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .errors import ModelError
from .family import FAMILIES
from .reading import BAND_RANGE, FACTOR_RANGE, THETA_RANGE, check_choice, check_number, check_size

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
        check_choice("family", self.family, FAMILIES)
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        for name in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn_size", "max_positions"):
            check_size(name, getattr(self, name))
        check_size("layers", self.layers, high=MAX_LAYERS)
        check_number("norm_eps", self.norm_eps, low=0.0, high=1.0)
        if self.heads % self.kv_heads:
            raise ModelError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        if "qkv" in FAMILIES[self.family].groups["qkv"]:
            self._check_fused()
        if FAMILIES[self.family].learned_positions:
            if self.rope_theta is not None or self.rope_scaling is not None:
                raise ModelError(f"family {self.family} has learned positions: rope_theta and rope_scaling must be None")
        else:
            self._check_rotary()

    def _check_fused(self):
        if self.heads * self.head_dim != self.hidden_size or self.kv_heads != self.heads:
            raise ModelError(
                f"family {self.family} needs heads * head_dim = hidden_size and kv_heads = heads, got "
                f"{self.heads} * {self.head_dim}, hidden_size {self.hidden_size}, kv_heads {self.kv_heads}"
            )

    def _check_rotary(self):
        check_number("rope_theta", self.rope_theta, *THETA_RANGE)
        if self.head_dim % 2:
            raise ModelError(f"head_dim = {self.head_dim} is odd: rotary positions need an even one")
        check_rope_scaling(self.rope_scaling, self.head_dim)


def check_rope_scaling(scaling: dict | None, head_dim: int) -> None:
    """Raise ModelError unless `scaling` is None or one of the forms in ModelConfig's docstring."""
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    check_choice("rope_scaling.rope_type", kind, ROPE_TYPES)
    if kind == "factors":
        factors = scaling.get("factors", ())
        if len(factors) != head_dim // 2:
            raise ModelError(f"rope_scaling.factors has {len(factors)} numbers; head_dim {head_dim} needs {head_dim // 2}")
        for factor in factors:
            check_number("rope_scaling.factors", factor, low=1e-6, high=1e9)
        return
    check_number("rope_scaling.factor", scaling.get("factor"), *FACTOR_RANGE)
    if kind == "llama3":
        low = check_number("rope_scaling.low_freq_factor", scaling.get("low_freq_factor"), *BAND_RANGE)
        high = check_number("rope_scaling.high_freq_factor", scaling.get("high_freq_factor"), *BAND_RANGE)
        check_size("rope_scaling.original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
        if high <= low:
            raise ModelError(f"rope_scaling.high_freq_factor = {high} must be above low_freq_factor = {low}")


def tiny_config(family: str, **changes) -> ModelConfig:
    """A small config of `family` with awkward sizes for tests (none a multiple of 32); `changes` replace fields."""
    check_choice("family", family, FAMILIES)
    return replace(ModelConfig(family=family, **FAMILIES[family].tiny), **changes)
