"""GGUF files for tests, written with the gguf package from one of our models."""

from pathlib import Path

import gguf
import numpy as np
import torch

from dynadapt.model import Model
from dynadapt.model.family import FAMILIES
from dynadapt.model.gguf_model import gguf_name
from dynadapt.model.layout import stored_rows


def permute(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in the order that "llama" files keep: halves of each head interleaved into pairs."""
    halves = value.view(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape).contiguous()


def write_gguf(model: Model, path: Path, kind: str = "F32", metadata: dict | None = None, skip=(), extra=None, kinds=()) -> Path:
    """Write `model` with matrices quantised to `kind` (norms and biases F32), or to what `kinds` has for a GGUF name. `metadata` adds or replaces keys (None
    drops one), `skip` drops tensors by GGUF name, `extra` adds float32 ones."""
    c = model.config
    writer = gguf.GGUFWriter(path, c.family)
    keys = {
        "context_length": c.max_positions,
        "embedding_length": c.hidden_size,
        "block_count": c.layers,
        "feed_forward_length": c.ffn_size,
        "attention.head_count": c.heads,
    }
    if c.norm == "layer":
        keys["attention.layer_norm_epsilon"] = c.norm_eps
    else:
        keys |= {
            "attention.head_count_kv": c.kv_heads,
            "attention.layer_norm_rms_epsilon": c.norm_eps,
            "rope.freq_base": c.rope_theta,
            "attention.key_length": c.head_dim,
            "attention.value_length": c.head_dim,
        }
    if windows := [window for window in c.windows if window]:  # a window in all layers but each n-th
        keys["attention.sliding_window"] = windows[0]
    if windows and c.family != "gemma2":
        keys |= {"attention.sliding_window_pattern": c.windows.index(None) + 1, "rope.freq_base_swa": c.window_rope_theta}
    if c.family == "gemma2":
        keys |= {"attn_logit_softcapping": c.attention_softcap, "final_logit_softcapping": c.logits_softcap}
    if c.family == "granite":
        keys |= {"embedding_scale": c.embedding_scale, "residual_scale": c.residual_scale, "logit_scale": c.logits_scaling}
        keys["attention.scale"] = c.scores_scale
    if c.rotary_dim:
        keys["rope.dimension_count"] = c.rotary_dim
    if c.family == "gptneox":
        keys["use_parallel_residual"] = c.parallel_residual
    keys = {f"{c.family}.{key}": value for key, value in keys.items()}
    keys |= {"tokenizer.ggml.bos_token_id": c.bos_token_id, "tokenizer.ggml.eos_token_id": c.eos_token_id}
    for key, value in (keys | (metadata or {})).items():
        _add(writer, key, value)
    for name in model.names():
        value = model.tensor(name)
        if name.split(".")[-2] in FAMILIES[c.family].gguf_permuted:
            value = permute(value, c.heads if name.split(".")[-2] == "q" else c.kv_heads)
        elif (rows := stored_rows(c, name.split(".")[-2])) is not None:  # of heads that are rotated in part
            value = torch.empty_like(value).index_copy_(0, rows, value)
        if gguf_name(name) in skip:
            continue
        if value.ndim == 1:
            writer.add_tensor(gguf_name(name), value.float().numpy())
        else:
            quantised = gguf.GGMLQuantizationType[dict(kinds).get(gguf_name(name), kind)]
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(value.float().numpy(), quantised), raw_dtype=quantised)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
