"""Weights quantised in blocks along a row, kept as their GGUF file has them.

A block holds a few numbers in float16 and an integer for each of its 32 or 256 columns:

    Q8_0   w = d q                    q in -128..127, d for 32 columns
    Q4_0   w = d (q - 8)              q in 0..15, d for 32 columns
    Q4_1   w = d q + m                q in 0..15, d and m for 32 columns
    Q5_0   w = d (q - 16)             q in 0..31, d for 32 columns
    Q4_K   w = (d s) q - (e t)        q in 0..15, s and t in 0..63 for 32 columns, d and e for 256
    Q6_K   w = (d s) (q - 32)         q in 0..63, s in -128..127 for 16 columns, d for 256

in float32, each product in brackets rounded before the next (``dequantise`` is the definition). A matrix of the native kernels
keeps the bytes, and no values beside them: a panel of it is expanded when a product reads it, a row when it is looked up. Its
values are these float32 ones to the bit, and rounded to bfloat16 where activations are; so what is computed with it is what
is computed with the same weight dequantised first.

Source of the formats: ggml's quantised types (ggml-quants.h); Q4_K and Q6_K are "k-quants".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .dispatch import native_module


@dataclass(frozen=True)
class BlockFormat:
    """``size`` bytes for ``columns`` columns. ``halves``: where its float16 numbers begin; ``expand``: blocks uint8 [B, size] as float32
    [B, columns]."""

    columns: int
    size: int
    halves: tuple[int, ...]
    expand: Callable[[torch.Tensor], torch.Tensor]


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 number at a byte of each block, as float32 [B, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _signed(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.contiguous().view(torch.int8).float()


def _nibbles(packed: torch.Tensor, together: int) -> torch.Tensor:
    """Of every ``together`` bytes, the low halves and then the high ones."""
    parts = packed.view(packed.shape[0], -1, 1, together)
    return torch.cat([parts & 15, parts >> 4], dim=2).flatten(1)


def _q8_0(blocks):
    return _half(blocks, 0) * _signed(blocks[:, 2:])


def _q4_0(blocks):
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:].contiguous(), 16).float() - 8)


def _q4_1(blocks):
    return _half(blocks, 0) * _nibbles(blocks[:, 4:].contiguous(), 16).float() + _half(blocks, 2)


def _q5_0(blocks):
    fifth = (blocks[:, 2:6, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:].contiguous(), 16) | fifth << 4).float() - 16)


def _q4_k(blocks):
    low, least, high = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scale = torch.cat([low & 63, (high & 15) | low >> 6 << 4], dim=1).float()
    minimum = torch.cat([least & 63, high >> 4 | least >> 6 << 4], dim=1).float()
    q = _nibbles(blocks[:, 16:].contiguous(), 32).view(-1, 8, 32).float()
    return ((_half(blocks, 0) * scale)[..., None] * q - (_half(blocks, 2) * minimum)[..., None]).flatten(1)


def _q6_k(blocks):
    low = _nibbles(blocks[:, :128].contiguous(), 64)
    parts = blocks[:, 128:192].contiguous().view(-1, 2, 1, 32)
    high = torch.cat([parts >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    q = (low | high << 4).float() - 32
    scale = _half(blocks, 208) * _signed(blocks[:, 192:208])
    return (scale[..., None] * q.view(-1, 16, 16)).flatten(1)


BLOCK_FORMATS = {
    "q8_0": BlockFormat(32, 34, (0,), _q8_0),
    "q4_0": BlockFormat(32, 18, (0,), _q4_0),
    "q4_1": BlockFormat(32, 20, (0, 2), _q4_1),
    "q5_0": BlockFormat(32, 22, (0,), _q5_0),
    "q4_k": BlockFormat(256, 144, (0, 2), _q4_k),
    "q6_k": BlockFormat(256, 210, (208,), _q6_k),
}


# What quantisers keep embedding and head in, where that differs from the format of a file's linear weights.
HEAD_FORMATS = {"q4_k": "q6_k", "q4_0": "q6_k", "q4_1": "q6_k"}


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight [N, K] as blocks: uint8 [N, K / columns * size], of the BLOCK_FORMATS' ``name``."""

    name: str
    shape: tuple[int, int]
    blocks: torch.Tensor

    @property
    def format(self) -> BlockFormat:
        return BLOCK_FORMATS[self.name]

    @property
    def nbytes(self) -> int:
        return self.blocks.numel()

    def finite(self) -> bool:
        """Whether every value is: blocks with finite float16 numbers have no other, and one that is not makes some that are not."""
        blocks = self.blocks.view(-1, self.format.size)
        return all(bool((blocks[:, at + 1] & 0x7C != 0x7C).all()) for at in self.format.halves)

    def dequantise(self) -> torch.Tensor:
        """float32 [N, K]."""
        return self.format.expand(self.blocks.reshape(-1, self.format.size)).view(self.shape)

    def rows(self, index: torch.Tensor) -> QuantisedWeight:
        """Some of the rows, or all in another order."""
        return QuantisedWeight(self.name, (len(index), self.shape[1]), self.blocks[index])


def make_quantised(weight: QuantisedWeight, dtype: torch.dtype):
    """The native matrix that keeps ``weight``'s blocks and has its values in ``dtype``, float32 or bfloat16."""
    blocks = weight.blocks.contiguous().view(-1).numpy()
    return native_module().PackedMatrix(weight.name, blocks, *weight.shape, str(dtype).removeprefix("torch."))


def expand(weight: QuantisedWeight, dtype: torch.dtype) -> torch.Tensor:
    """``weight.dequantise().to(dtype)``, to the bit, of float32 or bfloat16, by the native kernels: at no time is it in memory in a wider
    dtype."""
    values = torch.empty(weight.shape, dtype=dtype)
    make_quantised(weight, dtype).unpack(values)
    return values
