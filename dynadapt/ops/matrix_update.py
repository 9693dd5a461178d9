"""Optimizer steps that move a matrix as a whole: what stands in front of the update op, which moves element by element.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982), of each matrix [r, c] of a stream:

    first = momentum first + (1 - momentum) g;   u = momentum first + (1 - momentum) g          Nesterov's momentum
    d = lr (0.2 sqrt(max(r, c)) O(u) + weight_decay master)

O(u) is nearly the orthogonal factor U Vᵀ of u = U S Vᵀ (its singular values lie between about 0.7 and 1.2), by five steps of a
Newton-Schulz iteration, the shorter side first:

    X = u / max(|u|, 1e-7);   G = X Xᵀ;   X <- a X + (b G + c G²) X        a, b, c = 3.4445, -4.775, 2.0315

The scale is torch.optim.Muon's "match_rms_adamw": elements move by about 0.2 lr, as AdamW's do. What is no matrix of a layer (norms,
biases, embedding, positions, head) moves by AdamW, at the same rate. Products are torch's, in the masters' dtype, a stream's
matrices of one shape together; no stream sees another's, and nothing asks the device for a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

STEPS, COEFFICIENTS, SMALLEST = 5, (3.4445, -4.7750, 2.0315), 1e-7
RMS = 0.2  # of an element's move, at lr 1
PIECE = 1 << 22  # elements that are widened to float64 at a time


class Matrix(NamedTuple):
    """[rows, columns] in a flat row, its own rows ``stride`` elements apart."""

    start: int
    rows: int
    columns: int
    stride: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The view into ``flat`` [P]."""
        return flat.as_strided((self.rows, self.columns), (self.stride, 1), flat.storage_offset() + self.start)


@dataclass(frozen=True)
class Parts:
    """What lies in a flat row: matrices, and elsewhere spans (start, stop) of what is none. The rest stays zero."""

    matrices: tuple[Matrix, ...]
    elsewhere: tuple[tuple[int, int], ...] = ()

    @cached_property
    def by_shape(self) -> Mapping[tuple[int, int], list[Matrix]]:
        found: dict[tuple[int, int], list[Matrix]] = {}
        for matrix in self.matrices:
            found.setdefault((matrix.rows, matrix.columns), []).append(matrix)
        return found


def orthogonal(u: torch.Tensor) -> torch.Tensor:
    """O(u) of each of u [n, r, c]; zeros stay zeros."""
    a, b, c = COEFFICIENTS
    x = u.mT if u.shape[-2] > u.shape[-1] else u
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float64).clamp(min=SMALLEST)
    x = x / norm.to(x.dtype)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if u.shape[-2] > u.shape[-1] else x


def product_flops(matrices: Iterable[Matrix]) -> int:
    """Of ``orthogonal``, as torch's FlopCounterMode counts it."""
    sides = [sorted((matrix.rows, matrix.columns)) for matrix in matrices]
    return sum(STEPS * (4 * short * short * long + 2 * short**3) for short, long in sides)


def turn(g, first, second, master, parts: Parts | None, rule, count, moves=True) -> None:
    """g [P] becomes d / lr, and the moments move on, where ``moves`` (a flag, or one on the device).

    ``count``: which step of the stream this is, from 1; an int, or float64 [] on the device.
    """
    if parts is None:
        raise ValueError(
            f"update: kind={rule.kind!r} moves matrices as wholes, and state.parts does not say where they lie; expected Parts"
        )
    keeps = lambda new, old: new if moves is True else torch.where(moves, new, old)  # noqa: E731
    for (rows, columns), same in parts.by_shape.items():
        gradients, moments = (torch.stack([matrix.of(t) for matrix in same]) for t in (g, first))
        moved = torch.lerp(gradients, moments, rule.momentum)
        turned = orthogonal(torch.lerp(gradients, moved, rule.momentum)) * (RMS * max(rows, columns) ** 0.5)
        for matrix, new, moment, old, before in zip(same, turned, moved, gradients, moments):
            matrix.of(g).copy_(keeps(new + rule.weight_decay * matrix.of(master), old))
            matrix.of(first).copy_(keeps(moment, before))
    for start, stop in parts.elsewhere:
        part = slice(start, stop)
        mean = torch.lerp(g[part], first[part], rule.beta1)
        square = rule.beta2 * second[part] + (1 - rule.beta2) * g[part] * g[part]
        new = mean / (1 - rule.beta1**count) / ((square / (1 - rule.beta2**count)).sqrt() + rule.eps)
        for buffer, value in ((g, new + rule.weight_decay * master[part]), (first, mean), (second, square)):
            buffer[part] = keeps(value, buffer[part])


def matrix_update(op, state, rule, slots, lr, norms, skipped) -> None:
    """``update`` (ops/update.py) for a kind that moves matrices: the same arguments behind ``op``, the backend's update.

    Gradients are clipped and turned into directions in place, which ``op`` then takes as sgd does: with decay to the prior, the
    working copy, the count, and without streams whose gradient is not finite. ``state.parts`` says where matrices lie.
    """
    for i in range(len(slots)):
        _turn_stream(state, rule, slots[i : i + 1], norms[i : i + 1])
    own = norms.clone()
    op(state, replace(rule, kind=rule.arithmetic.prepared, momentum=0.0, weight_decay=0.0, clip=0.0), slots, lr, norms, skipped)
    norms.copy_(own)


def _turn_stream(state, rule, slot: torch.Tensor, norm: torch.Tensor) -> None:
    """One stream's gradient becomes its direction; ``norm`` [1] is that of the gradient. ``slot`` int32 [1], -1 for none."""
    at, buffers = slot.clamp(min=0).long(), [t for t in (state.grad, state.first, state.second) if t is not None]
    alone = len(state.master) == 1  # a view then serves, where a slot that only the device knows has to be copied
    rows = [t[0] if alone else t.index_select(0, at)[0] for t in buffers]
    g, first, second = (*rows, None)[:3]
    total = torch.stack([piece.double().square().sum() for piece in g.split(PIECE)]).sum().sqrt()
    norm.copy_(torch.where(slot >= 0, total, 0.0))
    moves = (slot >= 0) & torch.isfinite(total)  # [1]
    if rule.clip:
        g.mul_(torch.where(moves, (rule.clip / (total + 1e-6)).clamp(max=1.0), 1.0).to(g.dtype))
    master = state.master[0] if alone else state.master.index_select(0, at)[0]
    turn(g, first, second, master, state.parts, rule, (state.step.index_select(0, at)[0] + 1).double(), moves)
    if not alone:
        for buffer, row in zip(buffers, rows):
            buffer.index_copy_(0, at, row[None])
