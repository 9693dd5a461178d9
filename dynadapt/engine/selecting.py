"""Which tokens of a pass are learned from (adapt/selection.py), once they are scored: factors on their weights in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynadapt.adapt.selection import Selection, bounds


def means_of(nll: torch.Tensor, counts: Sequence[int]) -> list[float]:
    """Each row's mean of the scores [N] of a pass, in float64."""
    return [float(row.double().mean()) if len(row) else 0.0 for row in nll.split(list(counts))]


def chosen(
    rule: Selection, recents: Sequence[Sequence[float]], nll: torch.Tensor, counts: Sequence[int], weights: torch.Tensor, together: bool
) -> tuple[torch.Tensor, list[int]]:
    """(factors [N] on ``weights``, tokens of each row that count) of a pass's scores ``nll`` [N].

    A token that is left out has 0. The others have what makes the mean that is learned from one over them alone: the tokens of the row
    (``together``: of all rows) whose weight isn't 0, before by after.

    Args:
        recents: of each row's stream (``selection.remembered``). counts: scored tokens of each row, which stand one behind the other.
        weights: [N], of each NLL in the loss.
    """
    keep = (weights != 0).to(nll.dtype)
    before = [int(row.sum()) for row in keep.split(list(counts))]
    for own, row, recent, mean in zip(keep.split(list(counts)), nll.split(list(counts)), recents, means_of(nll, counts)):
        if not rule.takes(recent, mean):
            own.zero_()
        elif rule.tokens is not None and len(row):
            ordered, (low, high) = row.sort().values, bounds(rule.tokens, len(row))
            own.mul_((row >= ordered[low]) & (row <= ordered[high]))
    after = [int(row.sum()) for row in keep.split(list(counts))]
    whole = sum(before) / max(1, sum(after))
    for own, was, left in zip(keep.split(list(counts)), before, after):
        own.mul_(whole if together else was / max(1, left))
    return keep, after
