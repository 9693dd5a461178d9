"""The models that are measured, by their public sizes, with random weights; and what a step of theirs costs."""

from __future__ import annotations

import torch

from dynadapt.adapt.methods import GROUPS
from dynadapt.engine.decoder import group_sizes
from dynadapt.model import ModelConfig
from dynadapt.model.base import from_state
from dynadapt.model.geometries import GEOMETRIES, llama
from dynadapt.model.layout import tensor_shapes
from dynadapt.ops import attention, cross_entropy, linear, lora_gradient

RANK = 16
MODELS = {
    **{name: GEOMETRIES[name] for name in ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b")},
    "tiny": llama(
        vocab_size=97,
        hidden_size=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn_size=48,
        rope_theta=10000.0,
        max_positions=512,
        tied_head=True,
    ),
}
SHAPES = ((1, 512), (8, 512), (64, 512), (8, 2048))  # streams x segment
TINY_SHAPES = ((2, 16),)


def models(tiny: bool) -> list[str]:
    return ["tiny"] if tiny else [name for name in MODELS if name != "tiny"]


def shapes(tiny: bool):
    return TINY_SHAPES if tiny else SHAPES


def random_weights(name: str, device: str, dtype=torch.bfloat16, seed: int = 0):
    """A model with normal weights of deviation 0.02, rounded to bfloat16 whatever ``dtype`` is. Drawn on ``device`` (eight
    billion numbers take a CPU minutes), kept on the CPU."""
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for tensor, shape in tensor_shapes(MODELS[name]).items():
        value = torch.randn(shape, generator=generator, device=device)
        state[tensor] = (1 + 0.1 * value if tensor.endswith("norm.weight") else 0.02 * value).bfloat16().to(dtype).cpu()
    return from_state(MODELS[name], state, name=name)


def layers(name: str) -> set[tuple[int, int, int]]:
    """(k, o, rank) of a model's linear groups and of its head, by which kernels/choices.json knows them."""
    c = MODELS[name]
    groups = {(k, sum(parts), RANK) for k, parts in group_sizes(c).values()}
    return groups | {(c.hidden_size, c.vocab_size, 0)}


def step_flops(c: ModelConfig, streams: int, segment: int, memory: int, rank: int = RANK) -> dict[str, int]:
    """FLOPs of one adapt step with ``memory`` tokens remembered by each stream, by the ops' own formulas: forward, backward and
    recomputed, and ``masked``: the part that the causal mask throws away, which a kernel may skip."""
    n, forward, backward, recompute = streams * segment, 0, 0, 0
    for (layer, group), (k, parts) in group_sizes(c).items():
        lowest = layer == 0 and group == GROUPS[0]
        forward += linear.forward_flops(n, k, parts, rank)
        backward += linear.backward_flops(n, k, parts, rank, not lowest) + lora_gradient.flops(n, k, parts, rank)
    again, back = attention.backward_flops(segment, memory, c.heads, c.head_dim)
    forward += c.layers * streams * attention.forward_flops(segment, memory, c.heads, c.head_dim)
    backward += c.layers * streams * back
    recompute += c.layers * streams * again
    head = cross_entropy.flops(n, c.hidden_size, c.vocab_size, False)
    masked = c.layers * streams * sum(attention.masked_flops(segment, c.heads, c.head_dim))
    return {"forward": forward + head, "backward": backward + head, "recompute": recompute, "masked": masked}


def useful_flops(c, streams, segment, memory, rank: int = RANK) -> int:
    f = step_flops(c, streams, segment, memory, rank)
    return f["forward"] + f["backward"] + f["recompute"] - f["masked"]
