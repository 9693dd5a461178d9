"""Prompts: points x_0, x_1, ... and f(x_0), f(x_1), ... of one function, for a batch of functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .function_class import FunctionClass, Functions, IclError, check_count
from .inputs import Inputs


@dataclass(frozen=True)
class Prompts:
    """x [B, N, d], y [B, N]. After the first k examples query[:, k] is asked and target[:, k] is right; usually these are x and y."""

    x: Tensor
    y: Tensor
    query: Tensor
    target: Tensor
    functions: Functions


def draw(
    kind: FunctionClass,
    prompts: int,
    points: int,
    generator: torch.Generator,
    *,
    inputs: Inputs | None = None,
    active: int | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Prompts:
    """New functions and new inputs (default N(0, I)) for `prompts` prompts of `points` points.

    active: the curriculum of Garg et al.: coordinates of x from `active` on are zero. An int, or a 0-d tensor on the generator's device,
    which may change between replays of a captured graph. Source: dtsip/in-context-learning src/train.py.
    """
    check_count("prompts", prompts)
    check_count("points", points)
    if isinstance(active, int):
        check_count("active dimensions", active, 1, kind.dims, f", since x has {kind.dims} dimensions")
    inputs = inputs or Inputs()
    functions = kind.sample(prompts, generator, active=active, dtype=dtype)
    x, query = inputs.queries(inputs.sample(prompts, points, kind.dims, generator, dtype), generator)
    if active is not None:
        kept = torch.arange(kind.dims, device=x.device) < active
        x, query = (None if rows is None else torch.where(kept, rows, 0.0) for rows in (x, query))
    y = kind.observe(functions, x, generator)
    if query is None:
        return Prompts(x, y, x, y, functions)
    return Prompts(x, y, query, kind.observe(functions, query, generator), functions)


def interleaved(x: Tensor, y: Tensor) -> Tensor:
    """[B, 2N, d]: x_0, y_0, x_1, y_1, ..., the sequence that a model reads; y is in coordinate 0 and the others are zero. A model's
    prediction of y_k is read at position 2k. Source: dtsip/in-context-learning src/models.py."""
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise IclError(f"interleaved: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; give [B, N, d] and [B, N]")
    wide = torch.cat([y[:, :, None], torch.zeros_like(x[:, :, 1:])], dim=2)
    return torch.stack([x, wide], dim=2).flatten(1, 2)
