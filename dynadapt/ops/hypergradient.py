"""Factors on learning rates by hypergradient (adapt/hypergradient.py has the equations), around any ``update``, on every backend.

Before it, ``turned`` moves the logarithms of one slot's factors by the cosine of its gradient and its last step, range by range of a flat
row; behind it, ``scaled`` takes the step f times as long. Plain torch in the host's order; sums are float64 and taken range by range in order, so that
neither threads nor other slots change a bit. A step is all that an update subtracts: weight decay and the way to the prior are in it.
"""

from __future__ import annotations

import math

import torch


def cosines(gradient: torch.Tensor, last: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """float64 [G]: of gradient and last [P] in each range offsets[i]..offsets[i + 1] (int64 [G + 1]); 0 where either is all zero."""
    sums = lambda a, b: torch.segment_reduce(a.double() * b.double(), "sum", offsets=offsets, unsafe=True)  # noqa: E731
    lengths = (sums(gradient, gradient) * sums(last, last)).sqrt()
    return torch.where(lengths > 0, sums(gradient, last) / lengths, 0.0)


def turned(log_rate, gradient, last, offsets, step: float, limit: float) -> torch.Tensor:
    """log_rate [G] behind one more gradient [P]."""
    most = math.log(limit)
    return (log_rate + step * cosines(gradient, last, offsets)).clamp(-most, most)


def scaled(before, master, last, log_rate, offsets) -> None:
    """master [P], which an update has moved from ``before``, becomes before - f (before - master); last [P] that step. To the bit what it is where
    f = 1."""
    factor = torch.repeat_interleave(log_rate.exp().to(master.dtype), offsets.diff())
    torch.sub(before, master, out=last)
    master.addcmul_(1 - factor, last)
    last.mul_(factor)


def flops(parameters: int) -> int:
    """Arithmetic of both per element: three sums of products, a difference, a product and a sum, a product."""
    return 10 * parameters
