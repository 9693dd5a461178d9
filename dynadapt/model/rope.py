"""Rotary position tables: the cosines and sines that turn queries and keys (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import math

import torch

from .config import ModelConfig


def rope_frequencies(config: ModelConfig, windowed: bool = False) -> torch.Tensor:
    """Angle per position of each pair of dimensions that is rotated, float64 [rotated_dims/2], scaling applied; ``windowed``: in layers with a
    window.

    "linear" divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595); "llama3" divides those whose
    wavelength exceeds `original_max_position_embeddings / low_freq_factor`, leaves those shorter than
    `original / high_freq_factor`, and blends in between (Llama 3.1); "factors" divides each by its own number.
    """
    if config.rope_theta is None:
        raise ValueError(f"family {config.family} has learned positions and no rotary tables")
    exponent = torch.arange(0, config.rotated_dims, 2, dtype=torch.float64) / config.rotated_dims  # [rotated_dims/2]
    if windowed and config.window_rope_theta is not None:
        return config.window_rope_theta**-exponent
    frequency = config.rope_theta**-exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    if scaling["rope_type"] == "factors":
        return frequency / torch.tensor(scaling["factors"], dtype=torch.float64)
    return _llama3(
        frequency, **{k: scaling[k] for k in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
    )


def _llama3(frequency, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    turns = original_max_position_embeddings * frequency / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    return keep * frequency + (1 - keep) * frequency / factor


def rope_tables(config: ModelConfig, length: int, windowed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each float32 [length, head_dim/2], for positions 0..length-1; ``windowed``: in layers with a window.

    Halves convention: with x1, x2 the two halves of a head, the rotated head is
    (x1 * cos - x2 * sin, x2 * cos + x1 * sin). Pairs that are not rotated (layout.py) come last. Computed in float64, then rounded once.
    """
    position = torch.arange(length, dtype=torch.float64)
    frequency = torch.nn.functional.pad(rope_frequencies(config, windowed), (0, (config.head_dim - config.rotated_dims) // 2))
    angle = position[:, None] * frequency[None, :]  # [length, head_dim/2]
    return angle.cos().float(), angle.sin().float()
