"""The gate of an attention's output (Qwen3-Next, Qwen3.5): y = sigmoid(gate) * attention, the gate projected with the queries.

The linears in front give [gate | queries | keys | values]; attention and the norm of heads read what is behind the gate as one tensor.
"""

from __future__ import annotations

import torch

from dynadapt.model import ModelConfig


class AttentionGate:
    """Forward and backward of the gate; see ``Decoder`` for the arguments. The q columns of gate and attention stand side by side, as GLU
    of ops/activation.py takes them."""

    def __init__(self, config: ModelConfig, ops, workspace):
        self.q, self.ops, self.ws = config.heads * config.head_dim, ops, workspace

    def split(self, raw: torch.Tensor, key) -> tuple[torch.Tensor, torch.Tensor]:
        """(both [N, 2 q], of which the gate is there, qkv [N, q + 2 kv]) from raw [N, 2 q + 2 kv]."""
        n, width = raw.shape
        both, qkv = self.ws(("gate", key), n, 2 * self.q), self.ws(("behind gate", key), n, width - self.q)
        both[:, : self.q] = raw[:, : self.q]
        return both, qkv.copy_(raw[:, self.q :])

    def forward(self, both: torch.Tensor, attended: torch.Tensor, y: torch.Tensor) -> None:
        both[:, self.q :] = attended
        self.again(both, y)

    def again(self, both: torch.Tensor, y: torch.Tensor) -> None:
        """y [N, q] from both."""
        self.ops.activation_forward(both, "glu", y)

    def backward(self, dy: torch.Tensor, both: torch.Tensor, y: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(gradient of the gate, of what attention gave); ``y``: written once more."""
        dboth, attended = self.ws("dgate", *both.shape), self.ws("dattended", both.shape[0], self.q)
        self.ops.activation_backward(dy, both, "glu", dboth, y)
        return dboth[:, : self.q], attended.copy_(dboth[:, self.q :])

    def join(self, dgate: torch.Tensor, dqkv: torch.Tensor) -> torch.Tensor:
        """The gradient of raw."""
        draw = self.ws("draw of gate", dqkv.shape[0], self.q + dqkv.shape[1])
        draw[:, : self.q] = dgate
        draw[:, self.q :] = dqkv
        return draw
