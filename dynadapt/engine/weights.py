"""A model's weights as the decoder reads them: the linear groups, and what lies around them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dynadapt.adapt.methods import GROUPS
from dynadapt.model import ModelConfig, layout, rope_tables
from dynadapt.model.layout import has_bias, tensor_shapes
from dynadapt.ops import DenseMatrix, Float8Weights, make_int8_matrix, make_matrix, make_parts


def group_sizes(config: ModelConfig) -> dict[tuple[int, str], tuple[int, tuple[int, ...]]]:
    """{(layer, group): (K, part sizes)} in forward order."""
    q, kv, h, f = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.hidden_size, config.ffn_size
    parts = layout(config)
    sizes = {
        "qkv": (h, (q, kv, kv) if len(parts["qkv"]) == 3 else (q + 2 * kv,)),
        "o": (q, (h,)),
        "mlp_in": (h, (f,) * len(parts["mlp_in"])),
        "down": (f, (h,)),
    }
    return {(i, g): sizes[g] for i in range(config.layers) for g in GROUPS}


def source_weight(model, layer: int, group: str, part: int) -> torch.Tensor:
    """The prior weight [O, K] of one part of a linear group."""
    return model.tensor(f"layers.{layer}.{layout(model.config)[group][part]}.weight")


def biased_groups(config: ModelConfig) -> dict[tuple[int, str], list[str | None]]:
    """{(layer, group): the canonical name of each part's bias, None where it has none}, for groups with a bias."""
    named = {}
    for layer, group in group_sizes(config):
        names = [f"layers.{layer}.{part}.bias" if has_bias(config, part) else None for part in layout(config)[group]]
        if any(names):
            named[layer, group] = names
    return named


class ModelTensors:
    """What a model has beside its linear weights. Its gradients have the same form.

    ``attn_norm``, ``mlp_norm``: (weight, bias or None) by layer; ``final_norm``; ``head_norm``: (q, k weights) or None by layer;
    ``positions`` [P, H] or None; ``bias``: {(layer, group): [sum O_p]}; ``head``: a Matrix [V, H]; ``table`` [V, H], None where
    the head's rows serve the look-up.
    """

    def __init__(
        self,
        config: ModelConfig,
        get: Callable[[str], torch.Tensor],
        bias: dict[tuple[int, str], torch.Tensor],
        head,
        table: torch.Tensor | None,
    ):
        """``get(name)`` gives the tensor of a canonical name."""
        names = tensor_shapes(config)
        optional = lambda name: get(name) if name in names else None  # noqa: E731
        norm = lambda stem: (get(f"{stem}.weight"), optional(f"{stem}.bias"))  # noqa: E731
        layers = range(config.layers)
        self.attn_norm = [norm(f"layers.{i}.attn_norm") for i in layers]
        self.mlp_norm = [norm(f"layers.{i}.mlp_norm") for i in layers]
        self.final_norm = norm("norm")
        head_norm = lambda i: (get(f"layers.{i}.q_norm.weight"), get(f"layers.{i}.k_norm.weight"))  # noqa: E731
        self.head_norm = [head_norm(i) if config.qk_norm else None for i in layers]
        self.positions = optional("positions.weight")
        self.bias, self.head, self.table = bias, head, table


class FrozenWeights(ModelTensors):
    """The model's weights in the backend's form; ``own`` are the groups that a learner holds itself."""

    def __init__(self, model, backend: str, dtype: torch.dtype, own: set[tuple[int, str]], device="cpu", base: str = "same"):
        c = model.config
        load = lambda name: model.tensor(name).to(device=device, dtype=dtype).contiguous()  # noqa: E731
        sizes = group_sizes(c)
        self.parts: dict[tuple[int, str], list | Float8Weights | None] = {}
        for layer, group in sizes:
            if (layer, group) in own:
                self.parts[layer, group] = None
                continue
            tensors = [source_weight(model, layer, group, p) for p in range(len(layout(c)[group]))]
            if base == "float8":
                self.parts[layer, group] = Float8Weights(tensors, device)
            elif base == "int8":
                self.parts[layer, group] = [make_int8_matrix(w, backend, dtype) for w in tensors]
            else:
                self.parts[layer, group] = make_parts(tensors, backend, dtype, device)
        zeros = lambda n: torch.zeros(n, dtype=dtype, device=device)  # noqa: E731
        bias = {
            key: torch.cat([zeros(n) if name is None else load(name) for name, n in zip(names, sizes[key][1])])
            for key, names in biased_groups(c).items()
        }
        head_weight = model.tensor("embed.weight" if c.tied_head else "head.weight")
        int8 = base == "int8"
        head = make_int8_matrix(head_weight, backend, dtype) if int8 else make_matrix(head_weight, backend, dtype, device)
        super().__init__(c, load, bias, head, look_up_table(c, head, load))


def looks_up_in_head(config: ModelConfig, backend: str, base: str = "same") -> bool:
    """Whether the token embedding is read from the packed head, row by row, so that it needs no table and no op of its own."""
    return config.tied_head and config.rope_theta is not None and (backend == "cpu" or base == "int8")


def look_up_table(config: ModelConfig, head, get) -> torch.Tensor | None:
    """The plain tensor [V, H] of the token embedding. A tied head serves the look-up too, one copy of the largest matrix:
    as its plain tensor, or (None) by rows of its packed form."""
    if config.tied_head and isinstance(head, DenseMatrix):
        return head.weight
    return None if config.tied_head and config.rope_theta is not None else get("embed.weight")


def rotations(config: ModelConfig, window: int, dtype: torch.dtype, device) -> tuple:
    """(cos, sin) of the positions of a window, or two Nones where positions are learned."""
    if config.rope_theta is None:
        return None, None
    return tuple(t.to(device=device, dtype=dtype) for t in rope_tables(config, window))
