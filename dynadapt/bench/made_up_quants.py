"""Quantised weights of random bits, and whole GGUF files of them: the shape of a model, none of its knowledge."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from dynadapt.model import ModelConfig
from dynadapt.model.gguf_model import gguf_name
from dynadapt.model.layout import tensor_shapes
from dynadapt.ops.quants import BLOCK_FORMATS, QuantisedWeight

# By format: the deviation of a weight whose scale is 1 and whose integers are uniform, and a minimum that makes its mean 0.
_SPREAD = {
    "q8_0": (74.0, None),
    "q4_0": (4.6, None),
    "q4_1": (4.6, -7.5),
    "q5_0": (9.2, None),
    "q4_k": (258.0, 7.5),
    "q6_k": (1366.0, None),
}


def random_blocks(name: str, rows: int, columns: int, std: float = 0.02, seed: int = 0) -> QuantisedWeight:
    """A weight [rows, columns] of uniform integers, its values around 0 with a deviation of about ``std``.

    Raises:
        ValueError: a row is no number of whole blocks.
    """
    form, (spread, least) = BLOCK_FORMATS[name], _SPREAD[name]
    if columns % form.columns:
        raise ValueError(f"{name}: a weight of {columns} columns; a block of it has {form.columns}, take a format whose blocks fill a row")
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (rows * columns // form.columns, form.size), dtype=torch.uint8, generator=generator)
    scales = torch.rand(len(blocks), generator=generator).add_(0.5).mul_(std / spread)
    for at, factor in zip(form.halves, (1.0, least)):
        blocks[:, at : at + 2] = (scales * factor).half().view(torch.uint8).view(-1, 2)
    return QuantisedWeight(name, (rows, columns), blocks.view(rows, -1))


def write_made_up(config: ModelConfig, path: Path, name: str, head: str, std: float = 0.02) -> Path:
    """A GGUF file of ``config`` (a Llama, without a tokenizer) with matrices in the format ``name``, and embedding and head in ``head``, as
    quantisers make them. Tensor by tensor: never more than one is in memory."""
    import gguf

    writer = gguf.GGUFWriter(path, config.family, use_temp_file=True)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    for i, (tensor, shape) in enumerate(tensor_shapes(config).items()):
        if len(shape) == 1:
            writer.add_tensor(gguf_name(tensor), torch.ones(shape).numpy())
            continue
        kind = head if tensor in ("embed.weight", "head.weight") else name
        deviation = std / math.sqrt(2 * config.layers) if tensor.endswith(("o.weight", "down.weight")) else std
        blocks = random_blocks(kind, *shape, deviation, seed=i).blocks.numpy()
        writer.add_tensor(gguf_name(tensor), blocks, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
