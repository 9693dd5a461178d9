"""The sizes of the layers that mix tokens by the gated delta rule where others have attention (dynadapt/ops/delta_rule.py)."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ModelError
from .reading import check_size


@dataclass(frozen=True)
class DeltaLayers:
    """`layers`: of each layer of the model, whether it is one. `key_heads` heads of `key_dim` for queries and keys, `value_heads` of
    `value_dim` for values, each with a state [key_dim, value_dim]; `taps`: tokens that the convolution ahead of them sees.
    A value that does not fit raises ModelError naming the field.
    """

    layers: tuple[bool, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int

    def __post_init__(self):
        for name in ("key_heads", "value_heads", "key_dim", "value_dim", "taps"):
            check_size(f"delta.{name}", getattr(self, name), high=2**20)
        if self.value_heads % self.key_heads:
            raise ModelError(f"delta.key_heads = {self.key_heads} does not divide delta.value_heads = {self.value_heads}")
        if not any(self.layers) or all(self.layers):
            raise ModelError("delta.layers: accepted is at least one layer of the gated delta rule, and one of attention")

    @property
    def keys(self) -> int:
        """Width of the keys, and of the queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of the values, of their gate and of what the layer gives."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values side by side."""
        return 2 * self.keys + self.values

    @property
    def heads(self) -> tuple[int, int, int, int]:
        """As the ops take them: hk, hv, dk, dv."""
        return self.key_heads, self.value_heads, self.key_dim, self.value_dim
