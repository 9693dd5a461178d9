"""What one family of models says about itself; each file of `dynadapt.model.families` defines one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .config_keys import Keys

if TYPE_CHECKING:
    from .config import ModelConfig


@dataclass(frozen=True)
class Family:
    """The names and choices of a family. Modules are the canonical ones of `dynadapt.model.layout`.

    `groups`: the linear groups of a layer, as `layout` gives them; `delta_groups`: of one with the gated delta rule in attention's place,
    None in a family that has none. `learned_positions`: a position table instead of rotary.
    `hf_types`: model_type -> architecture of the config.json files read as this family, the one that is written first.
    `hf_base`: the prefix of the base model's tensors, absent from checkpoints of the base model alone.
    `hf_layers`: where the layers are. `hf_modules`: canonical module -> Hugging Face's, layers' modules relative to a layer.
    `hf_transposed`: linears stored as [in, out]. `hf_norm_offset`: what a stored norm weight lacks of the one that multiplies,
    but for those of the modules `hf_plain_norms`.
    `hf_keys`: model_type -> which keys of its config.json are read and which do not matter.
    `from_hf(raw, model_type)`: the config of a config.json. `to_hf(config)`: its config.json, type and architecture aside.
    `from_gguf(metadata, common)`: the config of a GGUF file of this architecture; `common` are fields that all have. None: such files
    are refused.
    `gguf_permuted`: linears whose rows a GGUF file keeps as pairs of a head instead of halves. `gguf_keys`: metadata keys that are read
    beside those that all have. `windowed`: llama.cpp gives its layers the window that a GGUF file speaks of; elsewhere one within the
    context is refused.
    `partial_rotary`: its heads may be rotated in part. `equal_heads`: its heads together are as wide as the residual, and each has keys of
    its own. `hf_heads_fused`: of its fused queries, keys and values Hugging Face stores all three of one head, then those of the next.
    `hf_files`: the canonical modules that files have under other names than live models, which may still be there.
    `hf_around`: model_type of config.json files of models around this one (of images and text) -> the model_type of the text model's own,
    under `text_config` there; `hf_inner`: the prefix that the base model's tensors have in their files, and `hf_beside` those of tensors
    that are not the text model's.
    `rate_factors`: what the usual learning rates are multiplied by, by what learns ("lora", "rows", "full"), where a sweep found others to
    be right (docs/defaults.md).
    `has_bias(config, part)`: whether a linear has a bias. `tiny`: fields of `tiny_config`.
    """

    name: str
    groups: dict[str, tuple[str, ...]]
    hf_types: dict[str, str]
    hf_base: str
    hf_layers: str
    hf_modules: dict[str, str]
    hf_keys: dict[str, Keys]
    from_hf: Callable[[Mapping, str], ModelConfig]
    to_hf: Callable[[ModelConfig], dict]
    from_gguf: Callable[[object, dict], ModelConfig] | None
    has_bias: Callable[[ModelConfig, str], bool]
    tiny: dict
    delta_groups: dict[str, tuple[str, ...]] | None = None
    learned_positions: bool = False
    hf_transposed: tuple[str, ...] = field(default=())
    hf_norm_offset: float = 0.0
    hf_plain_norms: tuple[str, ...] = field(default=())
    gguf_permuted: tuple[str, ...] = field(default=())
    gguf_keys: frozenset[str] = frozenset()
    windowed: bool = False
    partial_rotary: bool = False
    equal_heads: bool = False
    hf_heads_fused: bool = False
    hf_files: dict[str, str] = field(default_factory=dict)
    hf_around: dict[str, str] = field(default_factory=dict)
    hf_inner: str | None = None
    hf_beside: tuple[str, ...] = field(default=())
    rate_factors: dict[str, float] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make `family` known under its name."""
    FAMILIES[family.name] = family
