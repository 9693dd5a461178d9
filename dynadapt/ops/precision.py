"""The precision that statistics, scores and masters are kept in: float32, or float64 where the work itself is float64."""

from __future__ import annotations

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(t: torch.Tensor) -> torch.Tensor:
    return t.to(wide_dtype(t.dtype))
