"""What a model is made of, for people: sizes, parameters by part, memory."""

from __future__ import annotations

import math

from .base import Model
from .config import ModelConfig
from .errors import ModelError
from .layout import DELTA_PARTS, linear_shapes, tensor_shapes

_ATTENTION, _MLP = ("q", "k", "v", "qkv", "o"), ("gate", "up", "gate_up", "down")


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: embedding, positions, attention, delta (layers of the gated delta rule, but for their feed-forward), mlp, norms,
    head (0 if tied), biases, and their total."""
    counts = dict.fromkeys(("embedding", "positions", "attention", "delta", "mlp", "norms", "head", "biases"), 0)
    for name, shape in tensor_shapes(config).items():
        counts[_part(name)] += math.prod(shape)
    return {**counts, "total": sum(counts.values())}


def _part(name):
    module, kind = name.split(".")[-2:]
    if "norm" in module:
        return "norms"
    if kind == "bias":
        return "biases"
    if module in _ATTENTION:
        return "attention"
    if module in (*DELTA_PARTS, "delta", "convolution"):
        return "delta"
    return {"embed": "embedding", "positions": "positions", "head": "head"}.get(module, "mlp")


def describe(model: Model) -> str:
    """A few lines on a model: what it is, its sizes, its parameters by part, its tokenizer. Reads no weights."""
    c, counts = model.config, parameter_counts(model.config)
    head = "tied to the embedding" if c.tied_head else "its own"
    positions = "learned" if c.rope_theta is None else f"rotary, theta {c.rope_theta:g}"
    if c.rotary_dim is not None:
        positions += f" on {c.rotary_dim} dimensions of a head"
    if c.rope_scaling is not None:
        positions += f", {c.rope_scaling['rope_type']} scaling"
    kinds = {"": c.attention_layers[0]} if c.delta is None else {" with attention": c.attention_layers[0], " with delta": c.delta_layers[0]}
    linears = {
        kind: ", ".join(f"{part} {out}x{inner}" for part, (out, inner) in linear_shapes(c, layer).items()) for kind, layer in kinds.items()
    }
    lines = [
        f"{model.name}: family {c.family}, {counts['total']:,} parameters "
        f"({2 * counts['total'] / 1e6:,.0f} MB in bfloat16, {4 * counts['total'] / 1e6:,.0f} MB in float32)",
        f"  layers {c.layers}, hidden {c.hidden_size}, heads {c.heads} of {c.head_dim} ({c.kv_heads} for keys and values), "
        f"feed-forward {c.ffn_size} ({c.activation})",
        f"  vocabulary {c.vocab_size}, head {head}, positions {positions}, made for {c.max_positions} tokens",
        "  parameters: " + ", ".join(f"{part} {count:,}" for part, count in counts.items() if count and part != "total"),
        *(f"  linears of a layer{kind}: {shapes}" for kind, shapes in linears.items()),
        f"  fingerprint {model.fingerprint()[:16]}",
    ]
    if c.delta is not None:
        d = c.delta
        lines.insert(
            2,
            f"  {len(c.delta_layers)} layers of the gated delta rule: {d.key_heads} heads of {d.key_dim} for queries and keys, "
            f"{d.value_heads} of {d.value_dim} for values, convolution over {d.taps} tokens",
        )
    lines.append(f"  {_tokenizer(model)}")
    return "\n".join(lines)


def _tokenizer(model):
    try:
        tokenizer = model.tokenizer
    except ModelError as error:
        return f"a tokenizer that is refused: {error}"
    return (
        "no tokenizer"
        if tokenizer is None
        else f"tokenizer of {tokenizer.vocab_size} ids, begin {tokenizer.bos_id}, end {tokenizer.eos_id}"
    )
