"""The metadata of a GGUF file as a ModelConfig.

Keys mean what llama.cpp, whose format it is, makes of them. A key `<architecture>.*` is read, known not to matter, or refused
by name; `general.*` is bookkeeping, and what other programs keep under names of their own is theirs.
"""

from __future__ import annotations

import numpy as np

from .config import ModelConfig
from .errors import ModelError
from .family import FAMILIES
from .gguf_file import can_read
from .reading import FACTOR_RANGE, check_choice, check_number, check_size
from .rope_settings import yarn

ROPE_FACTORS = "rope_freqs.weight"
_READ = frozenset(
    """
    attention.head_count attention.head_count_kv attention.key_length attention.sliding_window attention.value_length
    block_count context_length embedding_length feed_forward_length vocab_size
""".split()
)
_READ_ROTARY = frozenset(
    """attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scale_linear rope.scaling.factor
       rope.scaling.original_context_length rope.scaling.type""".split()
)
_READ_LEARNED = frozenset(["attention.layer_norm_epsilon"])
# Notes of converters, and of mixtures of experts where there are none.
_IGNORED = frozenset("expert_used_count rope.scaling.finetuned tensor_data_layout".split())
_NEUTRAL = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "attention.scale": 0,
    "attn_logit_softcapping": 0,
    "embedding_scale": 0,
    "expert_count": 0,
    "final_logit_softcapping": 0,
    "logit_scale": 0,
    "pooling_type": 0,
    "residual_scale": 0,
    "rope.scaling.attn_factor": 1,
    "use_parallel_residual": False,
}


def config_from_gguf(file) -> ModelConfig:
    """The ModelConfig that a GGUF file's metadata and tensors describe; ModelError naming what is missing or unsupported."""
    architecture = file.metadata.get("general.architecture")
    readers = {name: family.from_gguf for name, family in FAMILIES.items() if family.from_gguf is not None}
    check_choice("general.architecture", architecture, readers)
    check_choice("general.type", file.metadata.get("general.type", "model"), ("model",))
    get = _Metadata(file, architecture)
    get.refuse_unread()
    hidden, heads = get.size("embedding_length"), get.size("attention.head_count")
    embed = file.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise ModelError("tensor token_embd.weight [vocabulary, hidden] is missing")
    if get.size("vocab_size", embed.shape[0]) != embed.shape[0]:
        raise ModelError(
            f"{architecture}.vocab_size = {get.size('vocab_size')} differs from the {embed.shape[0]} rows of token_embd.weight"
        )
    max_positions, head_dim = get.size("context_length"), _head_dim(get, hidden, heads)
    window = get.size("attention.sliding_window", 0)
    if 0 < window < max_positions and not FAMILIES[architecture].windowed:
        raise ModelError(
            f"sliding-window attention ({architecture}.attention.sliding_window = {window}) is not "
            f"supported; accepted: full attention in every layer"
        )
    common = dict(
        family=architecture,
        vocab_size=embed.shape[0],
        hidden_size=hidden,
        layers=get.size("block_count"),
        heads=heads,
        kv_heads=get.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_size=get.size("feed_forward_length"),
        max_positions=max_positions,
        tied_head="output.weight" not in file.tensors,
        bos_token_id=get.token("bos_token_id"),
        eos_token_id=get.token("eos_token_id"),
    )
    return readers[architecture](get, common)


def _head_dim(get, hidden, heads):
    family = FAMILIES[get.architecture]
    rotary = () if family.learned_positions or family.partial_rotary else ("rope.dimension_count",)
    length = get.size("attention.key_length", 0) or next((get.size(key, 0) for key in rotary), 0)
    if not length:
        if hidden % heads:
            raise ModelError(f"head_count = {heads} does not divide embedding_length = {hidden}")
        length = hidden // heads
    for key in ("attention.value_length", *rotary):
        other = get.size(key, length)
        if other != length:
            raise ModelError(
                f"{get.architecture}.{key} = {other} differs from the head size {length}, which is not "
                f"supported (partial rotary, or values of another size); accepted: {length}"
            )
    return length


class _Metadata:
    """Checked access to the keys `<architecture>.<key>`. Single-precision numbers become their shortest decimals."""

    def __init__(self, file, architecture):
        self.file, self.metadata, self.tensors = file, file.metadata, file.tensors
        self.architecture = architecture

    def size(self, key, default=None):
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one number a layer, all the same
        if value is None:
            raise ModelError(f"metadata {self.architecture}.{key} is missing")
        return value if value == 0 and default == 0 else check_size(f"{self.architecture}.{key}", value)

    def number(self, key, low, high, default=None):
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ModelError(f"metadata {self.architecture}.{key} is missing")
        return float(str(np.float32(check_number(f"{self.architecture}.{key}", value, low, high))))

    def flag(self, key):
        value = self.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, bool):
            raise ModelError(f"metadata {self.architecture}.{key} = {value!r} must be true or false")
        return value

    def rotary_dim(self, head_dim):
        """ModelConfig's, of a family that may rotate heads in part."""
        rotated = self.size("rope.dimension_count", head_dim)
        return None if rotated == head_dim else rotated

    def token(self, key):
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ModelError(f"metadata tokenizer.ggml.{key} = {value!r} must be a token id")
        return value

    def refuse_unread(self):
        """ModelError for a key of this architecture that is neither read nor known not to matter."""
        learned = FAMILIES[self.architecture].learned_positions
        known = _READ | _IGNORED | (_READ_LEARNED if learned else _READ_ROTARY) | FAMILIES[self.architecture].gguf_keys
        for name, value in self.metadata.items():
            key = name.removeprefix(f"{self.architecture}.")
            if key == name or key in known or key in _NEUTRAL and value == _NEUTRAL[key]:
                continue
            accepted = f"{_NEUTRAL[key]!r} or absent" if key in _NEUTRAL else "absent"
            raise ModelError(f"{name} = {repr(value)[:80]} is not supported; accepted: {accepted}")

    def rope_scaling(self):
        """The ModelConfig form of linear scaling, of yarn, or of the frequency factors that Llama 3 files carry as a tensor.

        A file without a type is linear, one of type none is not scaled whatever its factor; a factor of 0 says nothing.
        """
        name = f"{self.architecture}.rope.scaling"
        kind = self.metadata.get(f"{name}.type", "linear")
        check_choice(f"{name}.type", kind, ("none", "linear", "yarn"))
        key = "rope.scaling.factor" if f"{name}.factor" in self.metadata else "rope.scale_linear"
        factor = self.number(key, 0.0, FACTOR_RANGE[1], 0.0)
        scaled = None
        if factor not in (0.0, 1.0) and kind != "none":
            original = self.size("rope.scaling.original_context_length", self.size("context_length"))
            scaled = {"rope_type": "linear", "factor": factor}
            if kind == "yarn":
                scaled = yarn(check_number(f"{self.architecture}.{key}", factor, 1.0, FACTOR_RANGE[1]), original)
        if ROPE_FACTORS not in self.tensors or self.architecture != "llama":
            return scaled
        stored = self.tensors[ROPE_FACTORS]
        if scaled is not None or not can_read(stored.kind) or len(stored.shape) != 1 or stored.nbytes > 1 << 20:
            raise ModelError(
                f"tensor {ROPE_FACTORS} of shape {list(stored.shape)} together with scaling = "
                f"{scaled} is not supported; accepted: one number for each pair of a head, alone"
            )
        return {"rope_type": "factors", "factors": tuple(self.file.read(ROPE_FACTORS).double().tolist())}
