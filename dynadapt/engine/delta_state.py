"""What layers of the gated delta rule remember of each stream: a matrix for every value head, and the convolution's last inputs.

Both are as the weights of their time computed them, and detached, as keys and values in segment memory are; unlike these they have
one size however long the past, and nothing is ever dropped from them.
"""

from __future__ import annotations

import torch

from dynadapt.model.delta_layers import DeltaLayers
from dynadapt.ops.precision import wide_dtype


class DeltaState:
    """``states`` float32 [L, slots, hv, dk, dv] and ``rows`` [L, slots, W - 1, C] of the L layers of this kind, zero at a document's start."""

    def __init__(self, delta: DeltaLayers, slots: int, dtype: torch.dtype, device):
        layers = sum(delta.layers)
        sizes = delta.value_heads, delta.key_dim, delta.value_dim
        self.states = torch.zeros(layers, slots, *sizes, dtype=wide_dtype(dtype), device=device)
        self.rows = torch.zeros(layers, slots, delta.taps - 1, delta.channels, dtype=dtype, device=device)

    def advance(self, slots: torch.Tensor, states: torch.Tensor, rows: torch.Tensor) -> None:
        """Those of ``slots`` int32 [S] become ``states`` [L, S, ...] and ``rows`` [L, S, ...]; the host looks at no number."""
        index = slots.long()
        self.states.index_copy_(1, index, states)
        self.rows.index_copy_(1, index, rows)

    def clear(self, slot: int) -> None:
        self.states[:, slot].zero_()
        self.rows[:, slot].zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"delta.states": self.states, "delta.rows": self.rows}
