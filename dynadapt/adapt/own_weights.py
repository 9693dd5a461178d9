"""RowSparse and Full: a slot's own copy of the weights that learn.

``RowLearner`` keeps, for one slot, its matrices in the backend's form and flat float32 masters of the rows that learn
(all rows for Full). Chosen rows change while it runs, the layout does not: n rows a matrix, n fixed.
"""

from __future__ import annotations

import torch

from ..ops import make_matrix
from .flat import FlatLayout, FlatState
from .what import Full, RowSparse, targeted


class RowLearner:
    """Learns output rows of the targeted weights of one slot.

    Args:
        source: ``source(layer, part_index, group)`` gives the prior weight [O, K] of a part.
        groups: {(layer, group): (K, part sizes)} of the whole model.
    """

    owns_weights = True

    def __init__(self, adapt: RowSparse | Full, optimizer, groups, dtype: torch.dtype, backend: str, source):
        layers = 1 + max(layer for layer, _ in groups)
        self.adapt, self.backend, self.dtype, self.source = adapt, backend, dtype, source
        self.learning = targeted(adapt, layers)
        self.sizes = {key: groups[key] for key in self.learning}
        self.full = isinstance(adapt, Full)
        self.matrices = {key: [make_matrix(source(*key, p), backend, dtype) for p in range(len(parts))]
                         for key, (_, parts) in self.sizes.items()}
        shapes = {}
        for key, (k, parts) in self.sizes.items():
            for p, size in enumerate(parts):
                shapes[self._name(key, p)] = (self._count(size), k)
        self.layout = FlatLayout(shapes)
        self.state = FlatState(self.layout, 1, optimizer, dtype, separate_working=False)
        self.rows: dict[str, torch.Tensor | None] = {}
        self.updates = 0
        self.passes = 0  # gradients added up since the last update
        self.choosing_rows = False  # RMS: while its statistics are gathered
        self._choose_fixed()
        self._take_masters()

    @property
    def learned_parameters(self) -> int:
        return self.layout.parameters

    @staticmethod
    def _name(key, p) -> str:
        return f"{key[0]}.{key[1]}.{p}"

    def _count(self, size: int) -> int:
        return size if self.full else max(1, round(self.adapt.density * size))

    def _parts(self):
        for key, (_, parts) in self.sizes.items():
            for p, size in enumerate(parts):
                yield key, p, size, self._name(key, p)

    def _choose_fixed(self) -> None:
        """Evenly spaced rows; the start of select="gradient" as well, until its first choice."""
        for _, _, size, name in self._parts():
            n = self._count(size)
            self.rows[name] = None if self.full else (torch.arange(n) * size // n).to(torch.int32)

    def _take_masters(self, names=None) -> None:
        """Masters of the chosen rows from the current weights; the prior's rows when decay needs them."""
        with_prior = self.state.optimizer.decay > 0
        if with_prior and self.state.prior is None:
            self.state.prior = torch.zeros(self.layout.size, dtype=self.state.master.dtype)
        for key, p, size, name in self._parts():
            if names is not None and name not in names:
                continue
            index = torch.arange(size) if self.rows[name] is None else self.rows[name].long()
            values = torch.empty(len(index), self.sizes[key][0], dtype=self.dtype)
            self.matrices[key][p].gather_rows(index, values)
            self.layout.view(self.state.master, name)[0].copy_(values)
            if with_prior:
                prior = self.source(*key, p).to(self.dtype)
                self.layout.view(self.state.prior, name).copy_(prior[index])

    @property
    def _choosing(self) -> bool:
        if not isinstance(self.adapt, RowSparse) or self.adapt.select == "fixed" or self.passes:
            return False
        if self.state.optimizer.uses_statistics:  # statistics belong to rows: chosen once, on the statistics text
            return self.choosing_rows
        return self.updates % self.adapt.every == 0

    def _choose(self, ops, key, p, size, name, dy, x) -> None:
        """The rows of one matrix with the largest estimated gradient norm learn from now on."""
        scores = torch.empty(size, dtype=self.state.master.dtype)
        ops.row_scores(dy, x, scores)
        if not torch.isfinite(scores).all():
            return
        chosen = scores.topk(self._count(size)).indices.sort().values.to(torch.int32)
        if torch.equal(chosen, self.rows[name]):
            return
        self.rows[name] = chosen
        for buffer in (self.state.first, self.state.second):
            if buffer is not None:
                self.layout.view(buffer, name).zero_()
        self._take_masters({name})

    def parts(self, layer: int, group: str):
        return self.matrices.get((layer, group))

    def adapter(self, layer: int, group: str):
        return None, None

    def gradient(self, ops, layer, group, dy, x, u, dU, slots, accumulate) -> int:
        """Write or add to the gradient of the chosen rows; returns the number of rows whose gradient was computed."""
        key, start, chosen = (layer, group), 0, 0
        for p, size in enumerate(self.sizes[key][1]):
            name, part = self._name(key, p), dy[:, start : start + size]
            if self._choosing:
                self._choose(ops, key, p, size, name, part, x)
            dW = self.layout.view(self.state.grad, name)[0]
            ops.weight_gradient(part, x, self.rows[name], dW, accumulate)
            start, chosen = start + size, chosen + self._count(size)
        return chosen

    def update(self, ops, slots, lr):
        """slots is int32 [1] = 0 and lr float32 [1]: this learner holds one slot."""
        norms, skipped = self.state.update(ops.update, slots, lr)
        self.passes = 0
        if not skipped[0]:
            self.updates += 1
            self._write_back()
        return norms, skipped

    def _write_back(self) -> None:
        for key, p, _, name in self._parts():
            self.matrices[key][p].update_rows(self.rows[name], self.layout.view(self.state.master, name)[0])

    def reset(self, slot: int = 0) -> None:
        """All weights and the optimizer state back to the prior."""
        for key, p, _, _ in self._parts():
            self.matrices[key][p] = make_matrix(self.source(*key, p), self.backend, self.dtype)
        self.updates = self.passes = 0
        self.state.clear(0)
        if not self.full:
            self._choose_fixed()
        self._take_masters()

    def take_statistics(self, mean_square: torch.Tensor, gathered_by: "RowLearner") -> None:
        """Frozen statistics [P] for RMS, and the rows they belong to."""
        if gathered_by is not self:
            self.rows = dict(gathered_by.rows)
            self._take_masters()
        self.state.set_statistics(mean_square)

    def weights(self) -> dict[str, torch.Tensor]:
        """Every learning matrix [O, K] as it is now, by layer.group.part."""
        named = {}
        for key, p, size, name in self._parts():
            named[name] = torch.empty(size, self.sizes[key][0], dtype=self.dtype)
            self.matrices[key][p].unpack(named[name])
        return named

    def tensors(self) -> dict[str, torch.Tensor]:
        saved = dict(self.state.tensors())
        saved["updates"], saved["passes"] = torch.tensor(self.updates), torch.tensor(self.passes)
        saved.update({f"rows.{name}": rows for name, rows in self.rows.items() if rows is not None})
        saved.update({f"weight.{name}": t for name, t in self.weights().items()})
        return saved

    def load(self, saved) -> None:
        saved = dict(saved)
        self.updates, self.passes = int(saved.pop("updates")), int(saved.pop("passes"))
        for key, p, _, name in self._parts():
            self.matrices[key][p].update_rows(None, saved.pop(f"weight.{name}").to(self.state.master.dtype))
            if f"rows.{name}" in saved:
                self.rows[name] = saved.pop(f"rows.{name}")
        self.state.load(saved)
