"""A model's weights as the decoder reads them: the linear groups, and what lies around them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch

from dynadapt.model import ModelConfig, layout, rope_tables
from dynadapt.model.layout import has_bias, has_offset, linear_shapes, tensor_shapes
from dynadapt.ops import DenseMatrix, Float8Weights, expand, make_int8_matrix, make_matrix, make_parts, make_quantised
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.quants import BLOCK_FORMATS


def group_sizes(config: ModelConfig) -> dict[tuple[int, str], tuple[int, tuple[int, ...]]]:
    """{(layer, group): (K, part sizes)} in forward order."""
    sizes = {}
    for i in range(config.layers):
        shapes = linear_shapes(config, i)
        for group, parts in layout(config, i).items():
            sizes[i, group] = shapes[parts[0]][1], tuple(shapes[part][0] for part in parts)
    return sizes


def adaptable_sizes(config: ModelConfig) -> dict[tuple[int, str], tuple[int, tuple[int, ...]]]:
    """``group_sizes``, and those of the embedding, (-1, "embed"), and the head, (config.layers, "head")."""
    vocabulary, hidden = config.vocab_size, config.hidden_size
    return {(-1, "embed"): (vocabulary, (hidden,)), **group_sizes(config), (config.layers, "head"): (hidden, (vocabulary,))}


def source_weight(model, layer: int, group: str, part: int) -> torch.Tensor:
    """The prior weight [O, K] of one part of a linear group."""
    return model.tensor(f"layers.{layer}.{layout(model.config, layer)[group][part]}.weight")


def squared_rows(model, layer: int, group: str, dtype: torch.dtype, device) -> torch.Tensor:
    """The squared length [sum O_p] of each output row of a linear group, of weights as ``dtype`` has them, in float32 or wider."""
    parts = (source_weight(model, layer, group, p) for p in range(len(layout(model.config, layer)[group])))
    return torch.cat([part.to(device=device, dtype=dtype).to(wide_dtype(dtype)).square().sum(1) for part in parts])


def biased_groups(config: ModelConfig) -> dict[tuple[int, str], list[str | None]]:
    """{(layer, group): the canonical name of each part's bias, None where it has none}, for groups with a bias."""
    named = {}
    for layer, group in group_sizes(config):
        names = [f"layers.{layer}.{part}.bias" if has_bias(config, part) else None for part in layout(config, layer)[group]]
        if any(names):
            named[layer, group] = names
    return named


class DeltaTensors(NamedTuple):
    """What a layer of the gated delta rule has beside its linears."""

    taps: torch.Tensor  # [C, W], of the convolution
    a_log: torch.Tensor  # float32 [hv]
    dt_bias: torch.Tensor  # float32 [hv]
    norm: torch.Tensor  # [dv]


class ModelTensors:
    """What a model has beside its linear weights. Its gradients have the same form.

    ``attn_norm``, ``mlp_norm``: (weight, bias or None) by layer, None where attention and feed-forward read the residual as it is;
    ``attn_post_norm``, ``mlp_post_norm``: likewise, of what they add, None where it is added as it is; ``final_norm``; ``head_norm``: (q, k weights) or None by layer, all in
    float32 or wider where they are 1 + w (``layout.has_offset``);
    ``positions`` [P, H] or None; ``bias``: {(layer, group): [sum O_p]}; ``head``: a Matrix [V, H]; ``table`` [V, H], None where
    the rows of a Matrix serve the look-up: ``embedding``, the head where it is tied. ``delta``: ``DeltaTensors`` of the layers that
    have the gated delta rule in attention's place, None of others.
    """

    def __init__(
        self,
        config: ModelConfig,
        get: Callable[[str], torch.Tensor],
        bias: dict[tuple[int, str], torch.Tensor],
        head,
        table: torch.Tensor | None,
        embedding=None,
        get_wide: Callable[[str], torch.Tensor] | None = None,
    ):
        """``get(name)`` gives the tensor of a canonical name, ``get_wide`` in float32 or wider; None: the model has none such."""
        names = tensor_shapes(config)
        optional = lambda name: get(name) if name in names else None  # noqa: E731
        norm = lambda stem: (get(f"{stem}.weight"), optional(f"{stem}.bias"))  # noqa: E731
        layers = range(config.layers)
        present = lambda stem: norm(stem) if f"{stem}.weight" in names else None  # noqa: E731
        norms = lambda name: [present(f"layers.{i}.{name}") for i in layers]  # noqa: E731
        self.attn_norm, self.mlp_norm = norms("attn_norm"), norms("mlp_norm")
        self.attn_post_norm, self.mlp_post_norm = norms("attn_post_norm"), norms("mlp_post_norm")
        self.final_norm = norm("norm")
        head_norm = lambda i: (get(f"layers.{i}.q_norm.weight"), get(f"layers.{i}.k_norm.weight"))  # noqa: E731
        self.head_norm = [head_norm(i) if config.qk_norm and not config.is_delta(i) else None for i in layers]
        self.delta = [_delta_tensors(i, get, get_wide) if get_wide is not None and config.is_delta(i) else None for i in layers]
        self.positions = optional("positions.weight")
        self.bias, self.head, self.table = bias, head, table
        self.embedding = head if embedding is None else embedding

    def over(self, frozen: ModelTensors) -> ModelTensors:
        """``frozen`` with those tensors in their place that are here; these, where nothing is missing here."""
        if self is frozen or self.head is not None:
            return self
        made = copy.copy(frozen)
        for name in ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm", "head_norm"):
            setattr(made, name, [_either(own, other) for own, other in zip(getattr(self, name), getattr(frozen, name))])
        made.final_norm = _either(self.final_norm, frozen.final_norm)
        made.delta = [other and DeltaTensors(*_either(own, other)) for own, other in zip(self.delta, frozen.delta)]
        made.bias = {**frozen.bias, **self.bias}
        return made


def _either(own, other):
    """Of tensors that belong together (or None where there are none such), each from ``own`` where it is there."""
    return other if other is None else tuple(theirs if mine is None else mine for mine, theirs in zip(own, other))


def _delta_tensors(layer: int, get, get_wide) -> DeltaTensors:
    of = lambda name: f"layers.{layer}.{name}"  # noqa: E731
    wide = get_wide(of("delta.A_log")), get_wide(of("delta.dt_bias"))
    return DeltaTensors(get(of("convolution.weight")), *wide, get(of("delta_norm.weight")))


class FrozenWeights(ModelTensors):
    """The model's weights in the backend's form; ``own`` are the groups that a learner holds itself.

    The head, the largest of them, is made first: what it takes beside itself while it is made lies where the others come to be.
    ``kept``: with ``base="quants"``, the number of weights by the storage they are in, as ``Engine.explain`` says it.
    """

    def __init__(self, model, backend: str, dtype: torch.dtype, own: set[tuple[int, str]], device="cpu", base: str = "same"):
        c = model.config
        self.kept: dict[str, int] = {}

        def load(name):
            blocks = model.quantised(name) if backend == "cpu" else None
            return model.tensor(name).to(device=device, dtype=dtype).contiguous() if blocks is None else expand(blocks, dtype)

        name, embedding = "embed.weight" if c.tied_head else "head.weight", None
        if base == "quants":
            head = self._as_stored(model, name, dtype)
            if looks_up_by_rows(c, backend, base) and not c.tied_head:
                embedding = self._as_stored(model, "embed.weight", dtype)
        elif base == "int8":
            head = make_int8_matrix(model.tensor(name), backend, dtype)
        else:
            head = make_matrix(load(name), backend, dtype, device)
        table = look_up_table(c, head, load) if embedding is None else None
        sizes = group_sizes(c)
        self.parts: dict[tuple[int, str], list | Float8Weights | None] = {}
        for layer, group in sizes:
            if (layer, group) in own:
                self.parts[layer, group] = None
                continue
            names = [f"layers.{layer}.{part}.weight" for part in layout(c, layer)[group]]
            if base == "quants":
                self.parts[layer, group] = [self._as_stored(model, name, dtype) for name in names]
                continue
            if base == "float8":
                self.parts[layer, group] = Float8Weights([model.tensor(name) for name in names], device)
            elif base == "int8":
                self.parts[layer, group] = [make_int8_matrix(model.tensor(name), backend, dtype) for name in names]
            else:
                self.parts[layer, group] = make_parts([load(name) for name in names], backend, dtype, device)
        zeros = lambda n: torch.zeros(n, dtype=dtype, device=device)  # noqa: E731
        bias = {
            key: torch.cat([zeros(n) if name is None else load(name) for name, n in zip(names, sizes[key][1])])
            for key, names in biased_groups(c).items()
        }
        wide = lambda name: model.tensor(name).to(device=device, dtype=wide_dtype(dtype)).contiguous()  # noqa: E731
        super().__init__(c, lambda name: (wide if has_offset(c, name) else load)(name), bias, head, table, embedding, wide)

    def _as_stored(self, model, name: str, dtype: torch.dtype):
        """A weight in its file's blocks; in ``dtype`` where it is not stored in such as can be kept."""
        weight = model.quantised(name)
        stored = f"{model.kinds[name].lower()} as floats" if weight is None else weight.name
        self.kept[stored] = self.kept.get(stored, 0) + 1
        return make_matrix(model.tensor(name), "cpu", dtype) if weight is None else make_quantised(weight, dtype)


def looks_up_by_rows(config: ModelConfig, backend: str, base: str) -> bool:
    """Whether the token embedding is read from a packed matrix, row by row, so that it needs no table and no op of its own."""
    packed = backend == "cpu" or base == "int8"
    return (config.tied_head or base == "quants") and config.rope_theta is not None and packed


def look_up_table(config: ModelConfig, head, get) -> torch.Tensor | None:
    """The plain tensor [V, H] of the token embedding. A tied head serves the look-up too, one copy of the largest matrix:
    as its plain tensor, or (None) by rows of its packed form."""
    if config.tied_head and isinstance(head, DenseMatrix):
        return head.weight
    return None if config.tied_head and config.rope_theta is not None else get("embed.weight")


def rotations(config: ModelConfig, window: int, dtype: torch.dtype, device, beside: int = 0) -> list[tuple]:
    """(cos, sin) by layer of the positions of a window, or two Nones where nothing is rotated. Layers share their tables.

    ``beside``: positions of other passes, which may be more. ValueError where so many would be rotated otherwise than a window's.
    """
    if config.rope_theta is None:
        return [(None, None)] * config.layers
    apart = [config.window_rope_theta is not None and config.window(i) is not None for i in range(config.layers)]
    tables = {kind: _tables(config, window, beside, kind, device, dtype) for kind in set(apart)}
    return [tables[kind] if config.rotates(i) else (None, None) for i, kind in enumerate(apart)]


def _tables(config: ModelConfig, window: int, beside: int, kind: bool, device, dtype) -> tuple[torch.Tensor, ...]:
    found = rope_tables(config, window, kind)
    if beside > window:
        longer = rope_tables(config, beside, kind)
        if not all(torch.equal(a, b[:window]) for a, b in zip(found, longer)):
            raise ValueError(
                f"keep.tokens={beside} with a window of {window} tokens: {config.family} rotates so many positions otherwise than the window's; "
                f"expected at most {window}"
            )
        found = longer
    return tuple(t.to(device=device, dtype=dtype) for t in found)


def check_quantised(model) -> None:
    """ValueError for a model with no weight that ``base="quants"`` could keep as it is."""
    if model.block_names():
        return
    kinds = sorted({kind for name, kind in model.kinds.items() if len(model.shape(name)) == 2})
    stored = f"its weights are {', '.join(kinds)}" if kinds else "it is not from a GGUF file"
    if model.dtype is not None:
        stored += f", loaded with dtype={model.dtype}"
    raise ValueError(
        f"base='quants' with model {model.name!r}: {stored}; accepted are GGUF files in {', '.join(BLOCK_FORMATS)}, loaded without a "
        "dtype; use base='same'"
    )
