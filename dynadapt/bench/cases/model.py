"""Every op of the step at a model's sizes."""

from __future__ import annotations

import torch

from dynadapt.model import ModelConfig

from . import attention, head, layers, linear, norm, update
from .base import Draw, OpCase

RANK = 16


class Sizes:
    """One model's widths at S streams of T tokens, on one device, and values of one dtype."""

    def __init__(self, config: ModelConfig, streams: int, segment: int, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0):
        self.c = config
        self.S, self.T, self.N, self.device = streams, segment, streams * segment, device
        self.draw = Draw(dtype, seed, device, odd=False)
        q, kv = self.c.heads * self.c.head_dim, self.c.kv_heads * self.c.head_dim
        h, f = self.c.hidden_size, self.c.ffn_size
        self.groups = {"qkv": (h, [q, kv, kv]), "o": (q, [h]), "mlp_in": (h, [f, f]), "down": (f, [h])}

    def heads(self) -> tuple[int, int, int]:
        return self.c.heads, self.c.kv_heads, self.c.head_dim


def _of_groups(make):
    """A case for every group of weights that read the same input."""
    return lambda z, memory: [make(z.draw, z.N, k, parts, RANK, z.S, label=group) for group, (k, parts) in z.groups.items()]


def _weight_gradients(z: Sizes, memory: int) -> list[OpCase]:
    k, parts = z.groups["mlp_in"]
    shares = ((max(1, sum(parts) // 10), "10%"), (None, "100%"))
    return [linear.weight_gradient(z.draw, z.N, sum(parts), k, count, label=f"mlp_in {share} of rows") for count, share in shares]


def _heads(z: Sizes, memory: int) -> list[OpCase]:
    size = z.N, z.c.hidden_size, z.c.vocab_size
    return [
        head.cross_entropy(z.draw, *size, gradient, label=label) for gradient, label in ((True, "score and gradient"), (False, "score"))
    ]


def _attention(make, z: Sizes, memory: int) -> OpCase:
    return make(z.draw, z.S, z.T, memory or None, *z.heads(), label=f"memory {memory}")


def _memory_advance(z: Sizes, memory: int) -> OpCase:
    hq, hkv, d = z.heads()
    columns = (hq * d, (hq + hkv) * d)
    return attention.memory_advance(z.draw, z.c.layers, z.S, z.T, memory, columns, hkv * d, label=f"memory {memory}")


def _update(z: Sizes, memory: int) -> OpCase:
    """Adam with clip over all adapters of every stream."""
    per = z.c.layers * sum(RANK * (len(parts) * k + sum(parts)) for k, parts in z.groups.values())
    same = {"lr": torch.full((z.S,), 2e-3, device=z.device), "step": torch.full((z.S,), 3, dtype=torch.int32, device=z.device)}
    return update.update(z.draw, per, z.S, clip=1.0, prior=None, stat=None, prior_rate=None, **same, label="adam, clip")


_qkv = lambda z: sum(z.groups["qkv"][1])  # noqa: E731
# op -> its cases for sizes and the number of tokens that a stream remembers
OPS = {
    "linear_forward": lambda z, memory: [
        linear.linear_forward(z.draw, z.N, k, parts, RANK, z.S, bias=False, label=group) for group, (k, parts) in z.groups.items()
    ],
    "linear_backward": _of_groups(linear.linear_backward),
    "lora_gradient": _of_groups(linear.lora_gradient),
    "lora_gradient_update": _of_groups(update.lora_gradient_update),
    "weight_gradient": _weight_gradients,
    "cross_entropy": _heads,
    "cross_entropy_weight_gradient": lambda z, memory: [head.cross_entropy_weight_gradient(z.draw, z.N, z.c.hidden_size, z.c.vocab_size)],
    "norm_forward": lambda z, memory: [norm.norm_forward(z.draw, z.N, z.c.hidden_size)],
    "norm_backward": lambda z, memory: [norm.norm_backward(z.draw, z.N, z.c.hidden_size, learns=False, again=False)],
    "activation_forward": lambda z, memory: [layers.activation_forward(z.draw, z.N, z.c.ffn_size)],
    "activation_backward": lambda z, memory: [layers.activation_backward(z.draw, z.N, z.c.ffn_size, again=False)],
    "attention_forward": lambda z, memory: [_attention(attention.attention_forward, z, m) for m in (0, memory)],
    "attention_backward": lambda z, memory: [_attention(attention.attention_backward, z, memory)],
    "head_norm_forward": lambda z, memory: [norm.head_norm_forward(z.draw, z.N, *z.heads())],
    "head_norm_backward": lambda z, memory: [norm.head_norm_backward(z.draw, z.N, *z.heads(), learns="")],
    "bias_gradient": lambda z, memory: [linear.bias_gradient(z.draw, z.N, _qkv(z), label="qkv")],
    "row_scores": lambda z, memory: [linear.row_scores(z.draw, z.N, sum(z.groups["mlp_in"][1]), z.c.hidden_size, label="mlp_in")],
    "linear_mse": lambda z, memory: [head.linear_mse(z.draw, z.N, z.c.hidden_size, bias=False, label="score and gradients")],
    "memory_advance": lambda z, memory: [_memory_advance(z, memory)],
    "embedding_forward": lambda z, memory: [layers.embedding_forward(z.draw, z.N, z.c.hidden_size, z.c.vocab_size)],
    "embedding_backward": lambda z, memory: [layers.embedding_backward(z.draw, z.N, z.c.hidden_size, z.c.vocab_size)],
    "update": lambda z, memory: [_update(z, memory)],
}
