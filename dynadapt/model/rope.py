"""Rotary position tables: the cosines and sines that turn queries and keys (Su et al. 2021, arXiv:2104.09864).

Two scalings depend on how long a text is: "dynamic" from `max_positions` tokens on, "longrope" beyond the original context. Here
that length is the window that an engine keeps, segment and memory: its tables are made once, for all of it, so that a token is
turned alike at its start and at its end. transformers takes the largest position of each call; the two agree wherever its call
and the window are on the same side of that border, or of the same length beyond it.
"""

from __future__ import annotations

import math

import torch

from .config import ModelConfig


def rope_frequencies(config: ModelConfig, length: int = 1, windowed: bool = False) -> torch.Tensor:
    """Angle per position of each pair of dimensions that is rotated, float64 [rotated_dims/2], scaling applied.

    "linear" divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595); "dynamic" raises the base by as much as
    `length` exceeds `max_positions` (NTK-aware scaling, as Peng et al. 2023, arXiv:2309.00071, describe it); "yarn" divides those
    that turn less than `beta_slow` times within the original context, leaves those that turn more than `beta_fast` times, and
    blends in between (the same paper); "longrope" divides each by its own number, of two lists by whether `length` exceeds the
    original context (Ding et al. 2024, arXiv:2402.13753); "llama3" divides those whose wavelength exceeds
    `original_max_position_embeddings / low_freq_factor`, leaves those shorter than `original / high_freq_factor`, and blends in
    between (Llama 3.1); "factors" divides each by its own number.

    Args:
        length: positions that the tables are for. windowed: whether of layers with a window.
    """
    if config.rope_theta is None:
        raise ValueError(f"family {config.family} has learned positions and no rotary tables")
    exponent = torch.arange(0, config.rotated_dims, 2, dtype=torch.float64) / config.rotated_dims  # [rotated_dims/2]
    theta, scaling = _own(config, windowed)
    if scaling is None:
        return theta**-exponent
    kind, numbers = scaling["rope_type"], {key: value for key, value in scaling.items() if key not in ("rope_type", "attention_factor")}
    if kind == "dynamic":
        return _dynamic_base(theta, config.rotated_dims, numbers["factor"], length, config.max_positions) ** -exponent
    frequency = theta**-exponent
    if kind == "linear":
        return frequency / numbers["factor"]
    if kind == "yarn":
        return _yarn(frequency, theta, **numbers)
    if kind == "llama3":
        return _llama3(frequency, **numbers)
    if kind == "longrope":
        factors = numbers["long_factor" if length > numbers["original_max_position_embeddings"] else "short_factor"]
    else:
        factors = numbers["factors"]
    return frequency / torch.tensor(factors, dtype=torch.float64)


def rope_scale(config: ModelConfig, windowed: bool = False) -> float:
    """What cosines and sines are multiplied with: queries and keys alike, so that scores are by its square."""
    scaling = _own(config, windowed)[1]
    return 1.0 if scaling is None else scaling.get("attention_factor", 1.0)


def _own(config, windowed):
    """(theta, scaling) of the layers with, or without, a window."""
    if windowed and config.window_rope_theta is not None:
        return config.window_rope_theta, None
    return config.rope_theta, config.rope_scaling


def _dynamic_base(theta, head_dim, factor, length, max_positions):
    longer = max(length, max_positions) / max_positions
    return theta * (factor * longer - (factor - 1)) ** (head_dim / (head_dim - 2))


def _yarn(frequency, theta, factor, beta_fast, beta_slow, original_max_position_embeddings, truncate):
    d = 2 * len(frequency)
    # the dimension, of d, whose pair turns so many times within the original context
    turning = lambda turns: d * math.log(original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))  # noqa: E731
    low, high = turning(beta_fast), turning(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    if low == high:
        high += 0.001
    divided = ((torch.arange(d // 2, dtype=torch.float64) - low) / (high - low)).clamp(0.0, 1.0)
    return divided * frequency / factor + (1 - divided) * frequency


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
    frequency = torch.nn.functional.pad(rope_frequencies(config, length, windowed), (0, (config.head_dim - config.rotated_dims) // 2))
    angle = position[:, None] * frequency[None, :]  # [length, head_dim/2]
    scale = torch.ones(config.head_dim // 2, dtype=torch.float64)
    scale[: config.rotated_dims // 2] = rope_scale(config, windowed)
    return (scale * angle.cos()).float(), (scale * angle.sin()).float()
