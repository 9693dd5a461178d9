"""The canonical tensors of a model: their names, shapes, and what Hugging Face checkpoints call them.

Every linear weight is [out, in]. Shapes below: V vocabulary, H hidden, P positions, F feed-forward, d head size.

Rows of queries and keys stand as the attention ops pair them for their rotation, j with j + d/2 in every head. Where a family rotates
the first r dimensions of a head alone, Hugging Face's j and j + r/2 are such a pair, and those that are not rotated stand behind them
in both halves, where the tables have the angle 0. Scores are sums over a head and see no order, so nothing else knows of it. Where
attention has a gate, that of all heads stands in front of the queries, which Hugging Face stores head by head, each with its gate behind it.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from dynadapt.ops.precision import widen

from .config import ModelConfig
from .family import FAMILIES

DELTA_PARTS = ("delta_qkv", "delta_z", "delta_b", "delta_a", "delta_o")  # linears of a layer of the gated delta rule


def layout(config: ModelConfig, layer: int | None = None) -> dict[str, tuple[str, ...]]:
    """The linear groups of a layer: the parts of a group share their input. ``layer`` None: of any, where all have the same.

    "qkv" are the linears in front of attention or what stands in its place, "o" those behind it.
    """
    family = FAMILIES[config.family]
    if config.delta is not None and layer is None:
        raise ValueError(f"layer = None: layers of family {config.family} are of two kinds; accepted: 0 to {config.layers - 1}")
    groups = family.delta_groups if layer is not None and config.is_delta(layer) else family.groups
    assert groups is not None, "a config with such layers is of a family that has them"
    return dict(groups)


def linear_shapes(config: ModelConfig, layer: int | None = None) -> dict[str, tuple[int, int]]:
    """part -> (out, in) of every linear of a layer, in the order of computation; ``layer`` as for `layout`."""
    H, F = config.hidden_size, config.ffn_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    queries = 2 * q if config.attention_gate else q
    shapes = {"q": (queries, H), "k": (kv, H), "v": (kv, H), "qkv": (q + 2 * kv, H), "o": (H, q), "down": (H, F)}
    shapes |= {"gate": (F, H), "up": (F, H), "gate_up": (2 * F, H)}
    if (delta := config.delta) is not None:
        shapes |= {"delta_qkv": (delta.channels, H), "delta_z": (delta.values, H), "delta_o": (H, delta.values)}
        shapes |= dict.fromkeys(("delta_b", "delta_a"), (delta.value_heads, H))
    return {part: shapes[part] for group in layout(config, layer).values() for part in group}


def adaptable_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """PEFT's name -> (out, in) of every linear that an adapter can be on: those of the layers, the head, and the embedding as the linear
    [H, V] of unit vectors."""
    shapes = {peft_name(config, i, part): shape for i in range(config.layers) for part, shape in linear_shapes(config, i).items()}
    around = {"head": (config.vocab_size, config.hidden_size), "embed": (config.hidden_size, config.vocab_size)}
    return {**shapes, **{hf_module(config, name): shape for name, shape in around.items()}}


def group_parts(config: ModelConfig, layer: int, group: str) -> tuple[str, ...]:
    """The parts of one group of linears: of a layer, or the head, which is (config.layers, "head"), or the embedding, (-1, "embed")."""
    return (group,) if group in ("head", "embed") else layout(config, layer)[group]


def has_bias(config: ModelConfig, part: str) -> bool:
    """Whether the linear `part` has a bias."""
    return FAMILIES[config.family].has_bias(config, part)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of the model, in the order of computation."""
    V, H = config.vocab_size, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (V, H)}
    if FAMILIES[config.family].learned_positions:
        shapes["positions.weight"] = (config.max_positions, H)
    for i in range(config.layers):
        layer, linears = f"layers.{i}", linear_shapes(config, i)
        before = {"qkv": "attn_norm", "mlp_in": "mlp_norm"} if config.norm_place != "after" else {}
        behind = {"o": "attn_post_norm", "down": "mlp_post_norm"} if config.norm_place != "before" else {}
        for group, parts in layout(config, i).items():
            if group in before:
                _add_norm(shapes, config, f"{layer}.{before[group]}")
            for part in parts:
                shapes[f"{layer}.{part}.weight"] = linears[part]
                if has_bias(config, part):
                    shapes[f"{layer}.{part}.bias"] = linears[part][:1]
            if group == "qkv" and config.delta is not None and config.is_delta(i):
                shapes[f"{layer}.convolution.weight"] = (config.delta.channels, config.delta.taps)
                shapes[f"{layer}.delta.A_log"] = shapes[f"{layer}.delta.dt_bias"] = (config.delta.value_heads,)
                shapes[f"{layer}.delta_norm.weight"] = (config.delta.value_dim,)
            elif group == "qkv" and config.qk_norm:
                q, k = config.normed_widths
                shapes |= {f"{layer}.q_norm.weight": (q,), f"{layer}.k_norm.weight": (k,)}
            if group in behind:
                _add_norm(shapes, config, f"{layer}.{behind[group]}")
    _add_norm(shapes, config, "norm")
    if not config.tied_head:
        shapes["head.weight"] = (V, H)
    return shapes


def _add_norm(shapes, config, name):
    shapes[f"{name}.weight"] = (config.hidden_size,)
    if config.norm == "layer":
        shapes[f"{name}.bias"] = (config.hidden_size,)


def hf_module(config: ModelConfig, module: str) -> str:
    """The Hugging Face module of a canonical one: "layers.3.q" -> "model.layers.3.self_attn.q_proj"."""
    family = FAMILIES[config.family]
    if not module.startswith("layers."):
        return family.hf_modules[module]
    _, i, part = module.split(".")
    return f"{family.hf_layers}.{i}.{family.hf_modules[part]}"


def hf_name(config: ModelConfig, name: str) -> str:
    """The Hugging Face checkpoint's name of a canonical tensor."""
    module, kind = name.rsplit(".", 1)
    return f"{hf_module(config, module)}.{kind}"


def file_name(config: ModelConfig, name: str) -> str:
    """`hf_name` as files are written with it, which is another one where transformers renames tensors when it loads them."""
    module, kind = name.rsplit(".", 1)
    return f"{FAMILIES[config.family].hf_files[module]}.{kind}" if module in FAMILIES[config.family].hf_files else hf_name(config, name)


def hf_transposed(config: ModelConfig, name: str) -> bool:
    """Whether Hugging Face stores the canonical tensor as [in, out] (GPT-2's Conv1D)."""
    return name.endswith(".weight") and name.split(".")[-2] in FAMILIES[config.family].hf_transposed


def hf_order(config: ModelConfig, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A view of `tensor` with its axes as Hugging Face stores the canonical tensor `name`, or back: the same step both ways."""
    if _part(name) == "convolution":  # [C, W], stored as [C, 1, W]
        return tensor.squeeze(1) if tensor.ndim == 3 else tensor.unsqueeze(1)
    return tensor.t() if hf_transposed(config, name) else tensor


def hf_shape(config: ModelConfig, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which Hugging Face stores the canonical tensor `name`."""
    return tuple(hf_order(config, name, torch.empty(shape, device="meta")).shape)


def _part(name: str) -> str:
    return name.split(".")[-2]


@lru_cache(maxsize=64)
def stored_rows(config: ModelConfig, part: str, heads_fused: bool = False) -> torch.Tensor | None:
    """Of each row of the linear `part` (of its weight, its bias, or an adapter's B), or of a norm of heads, the number that it has among
    the rows as they are stored, int64 [out]; None where that is its own. `heads_fused`: as the Family's field."""
    gated, normed = config.attention_gate and part == "q", part in ("q_norm", "k_norm")
    moves = config.rotary_dim is not None or gated or heads_fused and part == "qkv"
    if not moves or part not in ("q", "k", "qkv") and not normed:
        return None
    d, r = config.head_dim, config.rotated_dims
    plain, half = torch.arange(d), r + (d - r) // 2
    paired = torch.cat([plain[: r // 2], plain[r:half], plain[r // 2 : r], plain[half:]])
    rows = lambda heads, order, first, step: (first + step * torch.arange(heads)[:, None] + order).flatten()  # noqa: E731
    q, kv = config.heads, config.kv_heads
    if normed:
        return paired
    if gated:
        return torch.cat([rows(q, plain, d, 2 * d), rows(q, paired, 0, 2 * d)])
    if part != "qkv":
        return rows(q if part == "q" else kv, paired, 0, d)
    if heads_fused:
        return torch.cat([rows(q, order, which * d, 3 * d) for which, order in enumerate((paired, paired, plain))])
    return torch.cat([rows(q, paired, 0, d), rows(kv, paired, q * d, d), rows(kv, plain, (q + kv) * d, d)])


def hf_rows(config: ModelConfig, part: str) -> torch.Tensor | None:
    """`stored_rows` of Hugging Face's tensors."""
    return stored_rows(config, part, FAMILIES[config.family].hf_heads_fused)


def from_hf_rows(config: ModelConfig, part: str, stored: torch.Tensor) -> torch.Tensor:
    """[out, ...] of the linear `part`, rows as Hugging Face stores them, with its rows in our order: itself where that is the same."""
    rows = hf_rows(config, part)
    return stored if rows is None else stored[rows]


def to_hf_rows(config: ModelConfig, part: str, tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `from_hf_rows`."""
    rows = hf_rows(config, part)
    if rows is None:
        return tensor
    stored = torch.empty_like(tensor)
    stored[rows] = tensor
    return stored


def hf_value(config: ModelConfig, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What Hugging Face stores for the values of the canonical tensor `name`, axes aside. To be taken before values are rounded:
    of a norm weight 1 + w that was rounded, w is not the one that was."""
    return tensor - FAMILIES[config.family].hf_norm_offset if has_offset(config, name) else tensor


def hf_tensor(config: ModelConfig, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The canonical tensor `name` as Hugging Face stores it."""
    return hf_order(config, name, to_hf_rows(config, _part(name), hf_value(config, name, tensor)))


def canonical_order(config: ModelConfig, name: str, stored: torch.Tensor) -> torch.Tensor:
    """What Hugging Face stores as `name` with its axes and rows in our order: a view, or where rows move a new tensor."""
    return from_hf_rows(config, _part(name), hf_order(config, name, stored))


def canonical_tensor(config: ModelConfig, name: str, stored: torch.Tensor) -> torch.Tensor:
    """What Hugging Face stores as the canonical tensor `name`: a view, or a new tensor where rows move, and of a norm weight w that
    stands for 1 + w in float32 or wider, where that sum is not rounded to w's dtype."""
    return canonical_value(config, name, canonical_order(config, name, stored))


def canonical_value(config: ModelConfig, name: str, stored: torch.Tensor) -> torch.Tensor:
    """`canonical_tensor` of one whose axes and rows are in order already."""
    return widen(stored) + FAMILIES[config.family].hf_norm_offset if has_offset(config, name) else stored


def has_offset(config: ModelConfig, name: str) -> bool:
    """Whether the canonical tensor `name` is a norm weight 1 + w whose w is stored. It stays in float32 or wider, for a bf16 model has w in
    bf16, whose steps around 0 are far finer than those around 1; transformers adds and multiplies in float32, too."""
    family = FAMILIES[config.family]
    return bool(family.hf_norm_offset) and name.endswith("norm.weight") and _part(name) not in family.hf_plain_norms


def peft_name(config: ModelConfig, layer: int, part: str) -> str:
    """The module that PEFT would adapt: "model.layers.3.self_attn.q_proj", "transformer.h.3.attn.c_attn", "lm_head" for "head"."""
    if part in ("head", "embed"):
        return hf_module(config, part)
    known = linear_shapes(config, layer)
    if part not in known:
        raise ValueError(f"part = {part!r} is not a linear of family {config.family}; accepted: {', '.join(known)}")
    return hf_module(config, f"layers.{layer}.{part}")
