"""Every op of the step at a model's sizes."""

from __future__ import annotations

import torch

from dynadapt.model import ModelConfig

from .activation import activation_backward, activation_forward
from .attention import attention_backward, attention_forward
from .base import Draw, OpCase
from .bias_gradient import bias_gradient
from .cross_entropy import adapted_cross_entropy, adapted_cross_entropy_gradient, cross_entropy, cross_entropy_weight_gradient, distillation
from .delta_gates import delta_gates_backward, delta_gates_forward
from .delta_rule import delta_rule_backward, delta_rule_forward
from .embedding import adapted_embedding_backward, adapted_embedding_forward, embedding_backward, embedding_forward
from .gated_norm import gated_norm_backward, gated_norm_forward
from .head_norm import head_norm_backward, head_norm_forward
from .linear import linear_backward, linear_forward
from .linear_activation import linear_activation_backward, linear_activation_forward
from .linear_mse import linear_mse
from .lora_gradient import lora_gradient
from .memory import memory_advance, memory_fill
from .norm import norm_backward, norm_forward
from .reset import reset
from .short_convolution import short_convolution_backward, short_convolution_forward
from .update import lora_gradient_update, update, weight_gradient_update
from .weight_gradient import row_scores, weight_gradient

RANK = 16


class Sizes:
    """One model's widths at S streams of T tokens, on one device, values of one dtype, and what its frozen weights are kept in."""

    def __init__(
        self,
        config: ModelConfig,
        streams: int,
        segment: int,
        device: str,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        base: str = "same",
    ):
        self.c, self.base = config, base
        self.S, self.T, self.N, self.device = streams, segment, streams * segment, device
        self.draw = Draw(dtype, seed, device, odd=False)
        q, kv = self.c.heads * self.c.head_dim, self.c.kv_heads * self.c.head_dim
        h, f = self.c.hidden_size, self.c.ffn_size
        self.groups = {"qkv": (h, [q, kv, kv]), "o": (q, [h]), "mlp_in": (h, [f, f]), "down": (f, [h])}

    def heads(self) -> tuple[int, int, int]:
        return self.c.heads, self.c.kv_heads, self.c.head_dim


def _of_groups(make, z: Sizes, **options) -> list[OpCase]:
    """A case for every group of weights that read the same input."""
    return [make(z.draw, z.N, k, parts, RANK, z.S, label=group, **options) for group, (k, parts) in z.groups.items()]


def _weight_gradients(make, z: Sizes) -> list[OpCase]:
    k, parts = z.groups["mlp_in"]
    shares = ((max(1, sum(parts) // 10), "10%"), (None, "100%"))
    return [make(z.draw, z.N, sum(parts), k, count, label=f"mlp_in {share} of rows") for count, share in shares]


def _cross_entropies(z: Sizes, m: int) -> list[OpCase]:
    forms = ((True, "score and gradient"), (False, "score"))
    return [cross_entropy(z.draw, z.N, z.c.hidden_size, z.c.vocab_size, gradient, label=label, base=z.base) for gradient, label in forms]


def _adapted_around(make, z: Sizes, **options) -> list[OpCase]:
    return [make(z.draw, z.N, z.c.hidden_size, z.c.vocab_size, RANK, z.S, **options)]


def _attention(make, z: Sizes, m: int) -> OpCase:
    return make(z.draw, z.S, z.T, m or None, *z.heads(), label=f"memory {m}")


def _delta_rule(make, z: Sizes) -> OpCase:
    """A layer of the gated delta rule with attention's query heads, each of a square state."""
    hq, _, d = z.heads()
    return make(z.draw, z.S, z.T, hq, hq, d, d)


def _short_convolution(make, z: Sizes, **options) -> OpCase:
    hq, _, d = z.heads()
    return make(z.draw, z.S, z.T, 3 * hq * d, **options)


def _memory_advance(z: Sizes, m: int) -> list[OpCase]:
    hq, hkv, d = z.heads()
    return [memory_advance(z.draw, z.c.layers, z.S, z.T, m, (hq * d, (hq + hkv) * d), hkv * d, label=f"memory {m}")]


def _adapter_parameters(z: Sizes) -> int:
    """Of one stream."""
    return z.c.layers * sum(RANK * (len(parts) * k + sum(parts)) for k, parts in z.groups.values())


def _update(z: Sizes, m: int) -> list[OpCase]:
    """Adam with clip over all adapters of every stream."""
    per = _adapter_parameters(z)
    step = torch.full((z.S,), 3, dtype=torch.int32, device=z.device)
    case = update(z.draw, per, z.S, label="adam, clip", prior=None, stat=None, prior_rate=None, step=step)
    return [case.change(lr=torch.full((z.S,), 2e-3, device=z.device))]


# op -> its cases for sizes z and m tokens that a stream remembers
OPS = {
    "linear_forward": lambda z, m: _of_groups(linear_forward, z, base=z.base, bias=False),
    "linear_backward": lambda z, m: _of_groups(linear_backward, z, base=z.base),
    "linear_activation_forward": lambda z, m: [
        linear_activation_forward(z.draw, z.N, z.c.hidden_size, z.c.ffn_size, RANK, z.S, z.c.activation, bias=False, base=z.base)
    ],
    "linear_activation_backward": lambda z, m: [
        linear_activation_backward(z.draw, z.N, z.c.hidden_size, z.c.ffn_size, RANK, z.S, z.c.activation, again=False, base=z.base)
    ],
    "lora_gradient": lambda z, m: _of_groups(lora_gradient, z),
    "lora_gradient_update": lambda z, m: _of_groups(lora_gradient_update, z),
    "weight_gradient": lambda z, m: _weight_gradients(weight_gradient, z),
    "weight_gradient_update": lambda z, m: _weight_gradients(weight_gradient_update, z),
    "cross_entropy": _cross_entropies,
    "distillation": lambda z, m: [distillation(z.draw, z.N, z.c.hidden_size, z.c.vocab_size, base=z.base)],
    "adapted_cross_entropy": lambda z, m: _adapted_around(adapted_cross_entropy, z, base=z.base),
    "adapted_cross_entropy_gradient": lambda z, m: _adapted_around(adapted_cross_entropy_gradient, z),
    "cross_entropy_weight_gradient": lambda z, m: [cross_entropy_weight_gradient(z.draw, z.N, z.c.hidden_size, z.c.vocab_size)],
    "norm_forward": lambda z, m: [norm_forward(z.draw, z.N, z.c.hidden_size)],
    "norm_backward": lambda z, m: [norm_backward(z.draw, z.N, z.c.hidden_size, learns=False, again=False)],
    "activation_forward": lambda z, m: [activation_forward(z.draw, z.N, z.c.ffn_size)],
    "activation_backward": lambda z, m: [activation_backward(z.draw, z.N, z.c.ffn_size, again=False)],
    "attention_forward": lambda z, m: [_attention(attention_forward, z, length) for length in (0, m)],
    "attention_backward": lambda z, m: [_attention(attention_backward, z, m)],
    "head_norm_forward": lambda z, m: [head_norm_forward(z.draw, z.N, *z.heads(), together=z.c.qk_norm_span == "all")],
    "head_norm_backward": lambda z, m: [head_norm_backward(z.draw, z.N, *z.heads(), learns="", together=z.c.qk_norm_span == "all")],
    "short_convolution_forward": lambda z, m: [_short_convolution(short_convolution_forward, z)],
    "short_convolution_backward": lambda z, m: [_short_convolution(short_convolution_backward, z, learns=False)],
    "delta_gates_forward": lambda z, m: [delta_gates_forward(z.draw, z.N, z.heads()[0])],
    "delta_gates_backward": lambda z, m: [delta_gates_backward(z.draw, z.N, z.heads()[0], learns=False)],
    "delta_rule_forward": lambda z, m: [_delta_rule(delta_rule_forward, z)],
    "delta_rule_backward": lambda z, m: [_delta_rule(delta_rule_backward, z)],
    "gated_norm_forward": lambda z, m: [gated_norm_forward(z.draw, z.N, z.heads()[0], z.heads()[2])],
    "gated_norm_backward": lambda z, m: [gated_norm_backward(z.draw, z.N, z.heads()[0], z.heads()[2], learns=False)],
    "bias_gradient": lambda z, m: [bias_gradient(z.draw, z.N, sum(z.groups["qkv"][1]), label="qkv")],
    "row_scores": lambda z, m: [row_scores(z.draw, z.N, sum(z.groups["mlp_in"][1]), z.c.hidden_size, label="mlp_in")],
    "linear_mse": lambda z, m: [linear_mse(z.draw, z.N, z.c.hidden_size, bias=False, label="score and gradients")],
    "memory_advance": _memory_advance,
    "memory_fill": lambda z, m: [memory_fill(z.draw, z.S, z.T, m, label=f"memory {m}")],
    "reset": lambda z, m: [reset(z.draw, _adapter_parameters(z), z.S)],
    "embedding_forward": lambda z, m: [embedding_forward(z.draw, z.N, z.c.hidden_size, z.c.vocab_size)],
    "embedding_backward": lambda z, m: [embedding_backward(z.draw, z.N, z.c.hidden_size, z.c.vocab_size)],
    "adapted_embedding_forward": lambda z, m: _adapted_around(adapted_embedding_forward, z),
    "adapted_embedding_backward": lambda z, m: _adapted_around(adapted_embedding_backward, z),
    "update": _update,
}
