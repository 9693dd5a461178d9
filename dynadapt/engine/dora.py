"""DoRA (Liu et al. 2024, arXiv 2402.09353): an output row of an adapted weight has a length m that it learns, and the adapter turns it.

    y = (m / n) * (x W^T + scale (x A^T) B^T) + b          n = ||W + scale B A|| of each output row, detached (section 4.3)

n is found again in every pass, from ||W||^2, A W^T and A A^T, without W + scale B A:

    n_o^2 = ||W_o||^2 + 2 scale B_o . (A W_o) + scale^2 B_o (A A^T) B_o^T
"""

from __future__ import annotations

import weakref

import torch

from dynadapt.ops import linear
from dynadapt.ops.linear import each_part


class Dora:
    """The lengths of linears' rows in a decoder's passes. Backward finds under the key of the layer what forward left."""

    def __init__(self, decoder):
        self.decoder = weakref.proxy(decoder)  # which has this, and is freed at once with what it holds

    def before(self, group: str, key, rows: int, width: int) -> torch.Tensor:
        """Where x W^T + scale (x A^T) B^T + b [N, O] is kept: y where m = n, to the bit."""
        return self.decoder.ws((group, "before m", key), rows, width)

    def _wide(self, name, *shape) -> torch.Tensor:
        return self.decoder.ws(name, *shape, dtype=self.decoder.stat_dtype)

    def apply(self, learner, layer: int, group: str, bias, batch, key, count, y) -> None:
        """y [N, O] from what is kept."""
        slots, width = batch.adapter_slots, y.shape[1]
        n, factor = (self._wide((group, name, key), len(slots), width) for name in ("n", "m / n"))
        m, square = learner.magnitudes[layer, group]
        self._lengths(learner, layer, group, slots, square, count, n)
        torch.div(m.index_select(0, slots), n, out=factor)
        factor.masked_fill_(n.isinf(), 1)
        before = self.before(group, key, *y.shape).view(len(slots), -1, width)
        y.copy_((before + (factor - 1)[:, None] * (before if bias is None else before - bias)).view_as(y))

    def _lengths(self, learner, layer: int, group: str, slots, square, count, n) -> None:
        """n [S, O] of each stream; infinite of parts without an adapter, of which m is not used."""
        d, wide = self.decoder, n.dtype
        A, Bt = (half.index_select(0, slots) for half in learner.adapter(layer, group))
        k, sizes = d.sizes[layer, group]
        n.fill_(torch.inf)
        for part, (rows, columns, rank, scale) in zip(
            d.weights.parts[layer, group], each_part(learner.scales[layer, group], sizes, Bt.shape[1])
        ):
            if not rank:
                continue
            a, width = A[:, rows].reshape(-1, k), columns.stop - columns.start
            through = d.ws((group, "A W"), len(a), width)
            d.ops.linear_forward(a, [part], None, None, None, slots, 0.0, None, through)
            for s, crossing in enumerate(
                through.view(len(slots), rank, width)
            ):  # each by itself, in memory of its own: torch's products of
                # several, and of what lies elsewhere, round in another way
                b, own = (half.to(wide).clone(memory_format=torch.contiguous_format) for half in (Bt[s, :rank, columns], A[s, rows]))
                crossed, squared = (b * crossing).sum(0), ((own @ own.T @ b) * b).sum(0)
                n[s, columns] = (square[columns] + 2 * scale * crossed + scale**2 * squared).sqrt()
            count(linear.forward_flops(len(slots) * rank, k, [width], 0) + 2 * len(slots) * rank * rank * (k + width))

    def back(self, layer: int, group: str, dy, batch) -> torch.Tensor:
        """(m / n) dy [N, O], the gradient of x W^T + scale (x A^T) B^T."""
        slots, width = batch.adapter_slots, dy.shape[1]
        factor = self._wide((group, "m / n", layer), len(slots), width)
        out = self.decoder.ws((group, "d before m"), *dy.shape)
        return out.copy_((dy.view(len(slots), -1, width) * factor[:, None]).view_as(dy))

    def gradient(self, learner, layer: int, group: str, bias, dy, batch, accumulate: bool) -> None:
        """dm, written or added: the sum over a stream's rows of dy times what is kept less b, over n."""
        slots, width = batch.adapter_slots, dy.shape[1]
        before, length = self.before(group, layer, *dy.shape), len(dy) // len(slots)
        moved = dy * (before if bias is None else before - bias)
        sums = self._wide((group, "dm"), len(slots), width).zero_()
        for i in range(len(slots)):
            self.decoder.ops.bias_gradient(moved[i * length : (i + 1) * length], sums[i])
        sums /= self._wide((group, "n", layer), len(slots), width)
        dm = learner.magnitude_gradient(layer, group)
        dm.index_add_(0, slots, sums) if accumulate else dm.index_copy_(0, slots.long(), sums)
