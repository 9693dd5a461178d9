"""A GGUF file as a Model: its metadata as a config, its tensor names as canonical ones."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from dynadapt.model.base import Model, check_shapes
from dynadapt.model.config import ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.family import FAMILIES
from dynadapt.model.gguf_file import GGUFFile, can_read
from dynadapt.model.gguf_tokenizer import gguf_tokenizer
from dynadapt.model.layout import tensor_shapes
from dynadapt.model.reading import check_choice, check_number, check_size
from dynadapt.model.safetensors_file import sample_file

_NAMES = {"embed": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output"}
_LAYER_NAMES = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v",
                "qkv": "attn_qkv", "o": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
                "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
_ROPE_FACTORS = "rope_freqs.weight"


def load_gguf(path: str | Path, dtype: torch.dtype | None = None) -> Model:
    """The Model in a GGUF file. Names, shapes and types are checked here; tensors are read and dequantised later."""
    path = Path(path)
    file = GGUFFile(path)
    try:
        config = config_from_gguf(file)
    except ModelError as error:
        raise ModelError(error if str(error).startswith(str(path)) else f"{path}: {error}") from error
    stored = {name: gguf_name(name) for name in tensor_shapes(config)}
    check_shapes(str(path), {stored[name]: shape for name, shape in tensor_shapes(config).items()},
                 {name: tensor.shape for name, tensor in file.tensors.items()},
                 ignored=lambda name: name == _ROPE_FACTORS or re.fullmatch(r"blk\.\d+\.attn_rot_embd(\.weight)?", name))
    for kind in {file.tensors[name].kind for name in stored.values()}:
        if not can_read(kind):
            raise ModelError(f"{path}: tensors of type {kind.name} are not supported; accepted: floats and the quantised "
                             f"types that the gguf package dequantises, such as Q4_1, Q8_0, Q4_K, Q6_K")

    def read(name):
        tensor = file.read(stored[name])
        return _unpermute(config, name, tensor) if _is_permuted(config, name) else tensor

    def tokenizer():
        return gguf_tokenizer(path, file.metadata, config)

    return Model(config, path.stem, read, lambda: sample_file(path), tokenizer, dtype, str(path))


def gguf_name(name: str) -> str:
    """The GGUF name of a canonical tensor: "layers.3.q.weight" -> "blk.3.attn_q.weight"."""
    *module, kind = name.split(".")
    if module[0] == "layers":
        return f"blk.{module[1]}.{_LAYER_NAMES[module[2]]}.{kind}"
    return f"{_NAMES[module[0]]}.{kind}"


def _is_permuted(config, name):
    return name.split(".")[-2] in FAMILIES[config.family].gguf_permuted


def _unpermute(config: ModelConfig, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Undo the order of q and k rows: pairs (0, 1), (2, 3), ... become halves (0, d/2), (1, d/2+1), ..."""
    heads = config.heads if name.split(".")[-2] == "q" else config.kv_heads
    pairs = tensor.view(heads, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The ModelConfig that a GGUF file's metadata and tensors describe; ModelError naming what is missing or unsupported."""
    architecture = file.metadata.get("general.architecture")
    check_choice("general.architecture", architecture, FAMILIES)
    get = _Metadata(file, architecture)
    hidden, heads = get.size("embedding_length"), get.size("attention.head_count")
    embed = file.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise ModelError("tensor token_embd.weight [vocabulary, hidden] is missing")
    max_positions, head_dim = get.size("context_length"), _head_dim(get, hidden, heads)
    _refuse_extras(get, max_positions)
    common = dict(family=architecture, vocab_size=embed.shape[0], hidden_size=hidden, layers=get.size("block_count"),
                  heads=heads, head_dim=head_dim, ffn_size=get.size("feed_forward_length"), max_positions=max_positions,
                  tied_head="output.weight" not in file.tensors, bos_token_id=get.token("bos_token_id"),
                  eos_token_id=get.token("eos_token_id"))
    return FAMILIES[architecture].from_gguf(get, common)


def _head_dim(get, hidden, heads):
    length = get.size("attention.key_length", 0) or get.size("rope.dimension_count", 0)
    if not length:
        if hidden % heads:
            raise ModelError(f"head_count = {heads} does not divide embedding_length = {hidden}")
        length = hidden // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        other = get.size(key, length)
        if other != length and not FAMILIES[get.architecture].learned_positions:
            raise ModelError(f"{get.architecture}.{key} = {other} differs from the head size {length}, which is not "
                             f"supported (partial rotary, or values of another size); accepted: {length}")
    return length


def _refuse_extras(get, max_positions):
    if get.size("expert_count", 0):
        raise ModelError(f"{get.architecture}.expert_count: mixtures of experts are not supported")
    window = get.size("attention.sliding_window", 0)
    if 0 < window < max_positions:
        raise ModelError(f"sliding-window attention ({get.architecture}.attention.sliding_window = {window}) is not "
                         f"supported; accepted: full attention in every layer")
    for key in ("attention.scale", "logit_scale", "embedding_scale", "residual_scale", "attn_logit_softcapping",
                "final_logit_softcapping", "attention.clamp_kqv"):
        if get.number(key, -1e30, 1e30, 0.0):
            raise ModelError(f"{get.architecture}.{key} is not supported; accepted: absent or 0")


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

    def token(self, key):
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ModelError(f"metadata tokenizer.ggml.{key} = {value!r} must be a token id")
        return value

    def rope_scaling(self):
        """The ModelConfig form of linear scaling, or of the frequency factors that Llama 3 files carry as a tensor."""
        kind = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        check_choice(f"{self.architecture}.rope.scaling.type", kind, ("none", "linear"))
        factor = self.number("rope.scaling.factor", 0.0, 1e9, 0.0) or self.number("rope.scale_linear", 0.0, 1e9, 0.0)
        linear = {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None
        if _ROPE_FACTORS not in self.tensors:
            return linear
        stored = self.tensors[_ROPE_FACTORS]
        if linear is not None or not can_read(stored.kind) or len(stored.shape) != 1 or stored.nbytes > 1 << 20:
            raise ModelError(f"tensor {_ROPE_FACTORS} of shape {list(stored.shape)} together with linear scaling = "
                             f"{linear} is not supported; accepted: one number for each pair of a head, alone")
        return {"rope_type": "factors", "factors": tuple(self.file.read(_ROPE_FACTORS).double().tolist())}
