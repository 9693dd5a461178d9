"""What torch.autocast does to a linear layer, for modules whose ops it does not know."""

from __future__ import annotations

import torch


def in_autocast(x: torch.Tensor, *others: torch.Tensor | None) -> tuple:
    """``x`` and the other tensors in autocast's dtype where it is on for x's device, else as they are. Float64 stays, as in torch."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x, *others
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))
