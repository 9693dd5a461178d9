"""Which stored tensor of a Hugging Face checkpoint is which canonical tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import torch

from .base import check_shapes
from .config import ModelConfig
from .family import FAMILIES
from .layout import file_name, hf_name, hf_shape, tensor_shapes

# Buffers that old checkpoints saved with the weights: causal masks and rotary frequencies.
_BUFFER = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


def match_hf(
    config: ModelConfig, found: Mapping[str, tuple[int, ...]], where: str, read: Callable[[str], torch.Tensor]
) -> tuple[ModelConfig, dict[str, str]]:
    """(config, canonical name -> stored name) for stored tensors `found` (name -> shape).

    Names may lack the base model's prefix ("transformer." for GPT-2, "model." for most). A tied config whose
    checkpoint nevertheless brings a head stays tied if the head equals the embedding (`read` is asked for both) and
    becomes untied if it differs, as transformers does. A tensor that is missing, unexpected or of another shape raises
    ModelError with `where` in front.
    """
    prefix = FAMILIES[config.family].hf_base
    bare = not any(key.startswith(prefix) for key in found)
    stored = {name: _stored_name(config, name, prefix if bare else "", found) for name in tensor_shapes(config)}
    head, embed = _stored_name(config, "head.weight", "", found), stored["embed.weight"]
    if config.tied_head and head in found and embed in found:
        if tuple(found[head]) != tuple(found[embed]) or not same(read(head), read(embed)):
            config = dataclasses.replace(config, tied_head=False)
            stored["head.weight"] = head
    expected = {stored[name]: hf_shape(config, name, shape) for name, shape in tensor_shapes(config).items()}
    beside = FAMILIES[config.family].hf_beside
    ignored = lambda key: bool(_BUFFER.search(key)) or key.startswith(beside) or (config.tied_head and key == head)  # noqa: E731
    check_shapes(where, expected, found, ignored)
    return config, stored


def _stored_name(config, name, dropped_prefix, found):
    stored = file_name(config, name)
    stored = stored if stored in found else hf_name(config, name)
    family = FAMILIES[config.family]
    if family.hf_inner is not None and (inner := family.hf_inner + stored.removeprefix(family.hf_base)) in found:
        return inner
    return stored[len(dropped_prefix) :] if dropped_prefix and stored.startswith(dropped_prefix) else stored


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape are the same storage or hold the same values."""
    layouts = [(t.data_ptr(), t.dtype, t.stride()) for t in (a, b)]  # an address says nothing about a transposed one
    return layouts[0] == layouts[1] or torch.equal(a, b)
