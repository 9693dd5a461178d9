"""Sizes of a regressor: what can be known of it without making it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checks import IclError, check_count

if TYPE_CHECKING:
    from dynadapt.model import ModelConfig


@dataclass(frozen=True)
class Geometry:
    """Sizes of a regressor. positions: of the learned table; a prompt of n points needs 2n - 1."""

    dims: int
    layers: int
    hidden: int
    heads: int
    positions: int

    def __post_init__(self):
        for name in ("dims", "layers", "hidden", "heads", "positions"):
            check_count(name, getattr(self, name))
        if self.hidden % self.heads:
            raise IclError(f"heads {self.heads}: give a divisor of hidden, {self.hidden}")

    def check_points(self, points: int) -> int:
        """IclError for a prompt that is longer than the model's positions."""
        if check_count("points", points) * 2 - 1 > self.positions:
            raise IclError(
                f"points {points}: such a prompt has {2 * points - 1} positions and the model {self.positions}; "
                f"give at most {(self.positions + 1) // 2} points, or more positions"
            )
        return points

    def decoder(self) -> ModelConfig:
        """The blocks between read-in and read-out; of the vocabulary nothing is made."""
        from dynadapt.model import ModelConfig
        from dynadapt.model.families.gpt2 import CHOICES

        return ModelConfig(
            family="gpt2",
            **CHOICES,
            vocab_size=1,
            hidden_size=self.hidden,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.hidden // self.heads,
            ffn_size=4 * self.hidden,
            norm_eps=1e-5,
            activation="gelu_tanh",
            max_positions=self.positions,
            tied_head=True,
        )

    def ends(self) -> dict[str, tuple[int, ...]]:
        """Shapes of read-in and read-out."""
        return {
            "read_in.weight": (self.hidden, self.dims),
            "read_in.bias": (self.hidden,),
            "read_out.weight": (self.hidden,),
            "read_out.bias": (1,),
        }
