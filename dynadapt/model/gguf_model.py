"""A GGUF file as a Model: its metadata as a config, its tensor names as canonical ones."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from .base import Model, check_shapes
from .config import ModelConfig
from .errors import ModelError
from .family import FAMILIES
from .gguf_config import ROPE_FACTORS, config_from_gguf
from .gguf_file import can_read
from .gguf_parts import open_gguf
from .gguf_tokenizer import gguf_tokenizer
from .layout import stored_rows, tensor_shapes
from .safetensors_file import identity_of

_NAMES = {"embed": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output"}
_LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
}


def load_gguf(path: str | Path, dtype: torch.dtype | None = None) -> Model:
    """The Model in a GGUF file, or in the parts of a split one, any of which may be given. Names, shapes and types are checked
    here; tensors are read and dequantised later."""
    path = Path(path)
    file = open_gguf(path)
    try:
        config = config_from_gguf(file)
    except ModelError as error:
        raise ModelError(error if str(error).startswith(str(path)) else f"{path}: {error}") from error
    stored = {name: gguf_name(name) for name in tensor_shapes(config)}
    check_shapes(
        str(path),
        {stored[name]: shape for name, shape in tensor_shapes(config).items()},
        {name: tensor.shape for name, tensor in file.tensors.items()},
        ignored=lambda name: _is_rope(name, config),
    )
    for kind in {file.tensors[name].kind for name in stored.values()}:
        if not can_read(kind):
            raise ModelError(
                f"{path}: tensors of type {kind.name} are not supported; accepted: floats and the quantised "
                f"types that the gguf package dequantises, such as Q4_1, Q8_0, Q4_K, Q6_K"
            )

    def read(name):
        tensor, rows = file.read(stored[name]), _stored_rows(config, name)
        return tensor if rows is None else tensor[rows]

    def blocks(name):
        weight, rows = file.blocks(stored[name]), _stored_rows(config, name)
        return weight if rows is None or weight is None else weight.rows(rows)

    def tokenizer():
        return gguf_tokenizer(path, file.metadata, config)

    kinds = {name: file.tensors[stored[name]].kind.name for name in stored}
    return Model(config, file.name, read, identity_of(file.paths), tokenizer, dtype, str(path), kinds, blocks)


def _is_rope(name, config):
    """Tables of rotary frequencies: read as part of the config, or left over from old converters."""
    return name == ROPE_FACTORS and config.family == "llama" or re.fullmatch(r"blk\.\d+\.attn_rot_embd(\.weight)?", name)


def gguf_name(name: str) -> str:
    """The GGUF name of a canonical tensor: "layers.3.q.weight" -> "blk.3.attn_q.weight"."""
    *module, kind = name.split(".")
    if module[0] == "layers":
        return f"blk.{module[1]}.{_LAYER_NAMES[module[2]]}.{kind}"
    return f"{_NAMES[module[0]]}.{kind}"


def _stored_rows(config: ModelConfig, name: str) -> torch.Tensor | None:
    """The stored row that each row is, None where they stand in our order: rows move whole, quantised or not. Where the family's q and k
    are permuted, stored pairs (0, 1), (2, 3), ... are our halves (0, d/2), (1, d/2+1), ..."""
    part = name.split(".")[-2]
    if part not in FAMILIES[config.family].gguf_permuted:
        return stored_rows(config, part)
    heads = config.heads if part == "q" else config.kv_heads
    pairs = torch.arange(heads * config.head_dim).view(heads, config.head_dim // 2, 2)
    return pairs.transpose(1, 2).flatten()
