"""RowSparse and Full: a slot's own copy of the weights that learn.

``RowLearner`` keeps, for one slot, its matrices in the backend's form and flat float32 masters of the rows that learn
(all rows for Full). Chosen rows change while it runs, the layout does not: n rows a matrix, n fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from dynadapt.adapt.methods import Full, RowSparse
from dynadapt.engine.weights import ModelTensors
from dynadapt.model.layout import layout
from dynadapt.ops import DenseMatrix, make_parts
from dynadapt.ops.weight_gradient import contrast

from .flat import FlatLayout, FlatState
from .fused import Fused


class RowLearner:
    """Learns output rows of the targeted weights of one slot.

    Args:
        source: ``source(layer, part_index, group)`` gives the prior weight [O, K] of a part.
        groups: {(layer, group): (K, part sizes)} of the whole model.
    """

    owns_weights = True
    kept = None  # by a reset
    weights_view: ModelTensors | None = None  # what learns beside linear weights (whole_model.py)
    gradient_view: ModelTensors | None = None
    magnitudes: Mapping = {}

    def __init__(
        self,
        adapt: RowSparse | Full,
        optimizer,
        groups,
        learning: list[tuple[int, str]],
        dtype: torch.dtype,
        backend: str,
        source,
        device="cpu",
        keep_prior: bool = False,
        keep_grad: bool = True,
    ):
        self.adapt, self.backend, self.dtype, self.source = adapt, backend, dtype, source
        self.device = torch.device(device)
        self.learning = learning
        self.sizes = {key: groups[key] for key in self.learning}
        self.full = isinstance(adapt, Full)
        # plain tensors that learn whole need no copy of their own: the update writes the weights that products read
        self.in_place = self.full and backend != "cpu"
        whole = {name: [(0, self._count(size), 0, self.sizes[key][0])] for key, _, size, name in self._parts()}
        self.layout = FlatLayout(self._shapes(), whole)
        self.state = FlatState(self.layout, 1, optimizer, dtype, separate_working=self.in_place, device=device, keep_grad=keep_grad)
        self.keep_prior = keep_prior or optimizer.decay > 0
        self.matrices = {key: self._matrices(key) for key in self.sizes}
        self.rows: dict[str, Any] = {}  # int32 [n], None for all
        self.prior_weights: dict[str, torch.Tensor] = {}  # on a device, where chosen rows change and decay needs theirs
        self.updates = 0  # attempts, a skipped one included
        self.passes = 0  # gradients added up since the last update
        self.choosing_rows = False  # RMS: while its statistics are gathered
        self.scores_of_all: Callable[[torch.Tensor], None] | None = None  # several processes: adds up their row scores
        self.contrasts = isinstance(adapt, RowSparse) and adapt.select == "contrast"
        if self.contrasts and optimizer.uses_statistics:
            raise ValueError(
                f"adapt={adapt!r} with optimizer={optimizer!r}: its rows are chosen once, on the statistics text; give select='gradient'"
            )
        self.reference: dict[str, torch.Tensor] = {}  # [O] of each matrix: mean row scores of the reference text
        self.adding: dict[str, torch.Tensor] | None = None  # their sums, while they are gathered
        self._say_what_lacks()
        self.fused: Fused | None = None  # set while the gradient kernels of a step update
        self._choose_fixed()
        self._take_masters()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """What learns, by name: n rows [n, K] of every part."""
        return {name: (self._count(size), self.sizes[key][0]) for key, _, size, name in self._parts()}

    def _matrices(self, key) -> list:
        parts = self.sizes[key][1]
        if self.in_place:
            views = [self.layout.view(self.state.compute, self._name(key, p))[0] for p in range(len(parts))]
            return [DenseMatrix(view, copy=False) for view in views]
        return make_parts([self.source(*key, p) for p in range(len(parts))], self.backend, self.dtype, self.device)

    def unpacked(self, config) -> dict[str, torch.Tensor]:
        """The linear weights that products read, learned rows and others, by canonical name of a model of this config; copies."""
        named = {}
        for (layer, group), matrices in self.matrices.items():
            for part, matrix in zip(layout(config, layer)[group], matrices):
                weight = torch.empty(matrix.shape, dtype=self.dtype, device=self.device)
                matrix.unpack(weight)
                named[f"layers.{layer}.{part}.weight"] = weight
        return named

    @property
    def learned_parameters(self) -> int:
        return self.layout.parameters

    @property
    def common(self) -> list[torch.Tensor | None]:
        """What does not change while it learns."""
        return [self.state.prior]

    @staticmethod
    def _name(key, p) -> str:
        return f"{key[0]}.{key[1]}.{p}"

    def _count(self, size: int) -> int:
        return max(1, round(self.adapt.density * size)) if isinstance(self.adapt, RowSparse) else size

    def _parts(self):
        for key, (_, parts) in self.sizes.items():
            for p, size in enumerate(parts):
                yield key, p, size, self._name(key, p)

    def _choose_fixed(self) -> None:
        """Evenly spaced rows; the start of select="gradient" as well, until its first choice."""
        for _, _, size, name in self._parts():
            n = self._count(size)
            spaced = None if self.full else (torch.arange(n) * size // n).to(device=self.device, dtype=torch.int32)
            self._set_rows(name, spaced)

    def _set_rows(self, name: str, rows: torch.Tensor | None) -> None:
        """In place where there are rows already: captured graphs hold their address."""
        if rows is None or self.rows.get(name) is None:
            self.rows[name] = None if rows is None else rows.clone()
        else:
            self.rows[name].copy_(rows)

    def _take_masters(self) -> None:
        """Masters of the chosen rows from the current weights (the prior, for Full in place); the prior's rows when it is needed."""
        if self.keep_prior and self.state.prior is None:
            self.state.prior = torch.zeros(self.layout.size, dtype=self.state.master.dtype, device=self.device)
        for key, p, _, name in self._parts():
            master = self.layout.view(self.state.master, name)[0]
            if self.in_place:
                master.copy_(self.source(*key, p).to(self.dtype))
            else:
                master.copy_(self._current_rows(key, p, name))
            if self.keep_prior:
                self.layout.view(self.state.prior, name).copy_(self._prior_rows(key, p, name))
        if self.state.working is not None:
            self.state.working.copy_(self.state.master)

    def _current_rows(self, key, p, name) -> torch.Tensor:
        """The chosen rows as the products read them, [n, K]."""
        size, k = self.sizes[key][1][p], self.sizes[key][0]
        index = torch.arange(size, device=self.device) if self.rows[name] is None else self.rows[name].long()
        values = torch.empty(len(index), k, dtype=self.dtype, device=self.device)
        self.matrices[key][p].gather_rows(index, values)
        return values

    def _prior_rows(self, key, p, name) -> torch.Tensor:
        """The chosen rows as they were before adaptation, [n, K]."""
        if self.device.type == "cpu" or self.full:
            prior = self.source(*key, p).to(device=self.device, dtype=self.dtype)
        else:
            if name not in self.prior_weights:
                self.prior_weights[name] = self.source(*key, p).to(device=self.device, dtype=self.dtype)
            prior = self.prior_weights[name]
        return prior if self.rows[name] is None else prior[self.rows[name].long()]

    @property
    def choosing(self) -> bool:
        """Whether the next gradient chooses rows anew."""
        if not isinstance(self.adapt, RowSparse) or self.adapt.select == "fixed" or self.passes:
            return False
        if self.state.optimizer.uses_statistics:  # statistics belong to rows: chosen once, on the statistics text
            return self.choosing_rows
        return self.updates % self.adapt.every == 0

    def _choose(self, ops, key, p, size, name, dy, x) -> None:
        """The rows of one matrix with the largest estimated gradient norm learn from now on.

        Scores that are not finite change nothing, and so does the same choice as before; both are decided without the
        host looking at the numbers.
        """
        scores = self._row_scores(ops, size, dy, x)
        if self.scores_of_all is not None:
            self.scores_of_all(scores)
        if self.contrasts:
            scores = contrast(scores, self.reference[name])
        rows = self.rows[name]
        chosen = scores.topk(self._count(size)).indices.sort().values.to(torch.int32)
        chosen = torch.where(torch.isfinite(scores).all(), chosen, rows)
        same = (chosen == rows).all()
        rows.copy_(chosen)
        for buffer in (self.state.first, self.state.second):
            if buffer is not None:
                moment = self.layout.view(buffer, name)
                moment.copy_(torch.where(same, moment, 0))
        master = self.layout.view(self.state.master, name)[0]
        master.copy_(torch.where(same, master, self._current_rows(key, p, name).to(master.dtype)))
        if self.keep_prior:
            self.layout.view(self.state.prior, name).copy_(self._prior_rows(key, p, name))

    def _row_scores(self, ops, size, dy, x) -> torch.Tensor:
        scores = torch.empty(size, dtype=self.state.master.dtype, device=self.device)
        ops.row_scores(dy, x, scores)
        return scores

    @contextmanager
    def gathering(self):
        """Gradients inside are only looked at: their row scores add up in ``adding``, which is what is given."""
        self.adding = {name: torch.zeros(size, dtype=self.state.master.dtype, device=self.device) for _, _, size, name in self._parts()}
        try:
            yield self.adding
        finally:
            self.adding = None

    def take_reference(self, reference: dict[str, torch.Tensor]) -> None:
        """Mean row scores [O] of each matrix, by which rows are chosen from now on."""
        self.reference = {name: scores.clone() for name, scores in reference.items()}
        self._say_what_lacks()

    def _say_what_lacks(self) -> None:
        self.state.ungathered = f"adapt={self.adapt!r}" if self.contrasts and not self.reference else None

    def parts(self, layer: int, group: str):
        return self.matrices.get((layer, group))

    def adapter(self, layer: int, group: str):
        return None, None

    def gradient(self, ops, layer, group, dy, x, u, dU, slots, accumulate) -> int:
        """Write or add to the gradient of the chosen rows, or with ``fused`` set move them at once; returns how many rows there are."""
        key, start, chosen = (layer, group), 0, 0
        choosing = self.choosing
        for p, size in enumerate(self.sizes[key][1]):
            name, part = self._name(key, p), dy[:, start : start + size]
            if self.adding is not None:
                self.adding[name] += self._row_scores(ops, size, part, x)
                start += size
                continue
            if choosing:
                self._choose(ops, key, p, size, name, part, x)
            if self.fused is not None:
                self._fused_update(self.fused, ops, key, p, name, part, x)
            else:
                dW = self.layout.view(self.state.grad, name)[0]
                ops.weight_gradient(part, x, self.rows[name], dW, accumulate)
            start, chosen = start + size, chosen + self._count(size)
        return chosen

    def _fused_update(self, f: Fused, ops, key, p, name, dy, x) -> None:
        state = replace(self.state.state_of(name).of(0), working=None)
        ops.weight_gradient_update(dy, x, self.rows[name], self.matrices[key][p].weight, state, f.rule, f.lr, f.skipped)

    def update(self, ops, slots, lr, norms=None, skipped=None):
        """slots is int32 [1] = 0 (or -1: stays) and lr float32 [1]: this learner holds one slot."""
        norms, skipped = self.state.update(ops.update, slots, lr, norms, skipped)
        if not self.state.sharded:
            self._write_back()
        return norms, skipped

    def count_update(self) -> None:
        """The host's part of an update."""
        self.passes = 0
        self.updates += 1

    def _write_back(self) -> None:
        if self.in_place:
            return
        for key, p, _, name in self._parts():
            self.matrices[key][p].update_rows(self.rows[name], self.layout.view(self.state.master, name)[0])

    def reset(self, slot: int = 0) -> None:
        """All weights and the optimizer state back to the prior; the matrices stay where they are in memory."""
        if not self.in_place:
            for key, p, _, _ in self._parts():
                self.matrices[key][p].update_rows(None, self.source(*key, p).to(self.dtype).to(self.device, self.state.master.dtype))
        self.updates = self.passes = 0
        self.state.clear(0)
        if not self.full:
            self._choose_fixed()
        self._take_masters()

    def take_statistics(self, mean_square: torch.Tensor, gathered_by: RowLearner) -> None:
        """Frozen statistics [P] for RMS, and the rows they belong to."""
        if gathered_by is not self:
            for name, rows in gathered_by.rows.items():
                self._set_rows(name, rows)
            self._take_masters()
        self.state.set_statistics(mean_square)

    def weights(self) -> dict[str, torch.Tensor]:
        """Every learning matrix [O, K] as it is now, by layer.group.part."""
        named = {}
        for key, p, size, name in self._parts():
            named[name] = torch.empty(size, self.sizes[key][0], dtype=self.dtype, device=self.device)
            self.matrices[key][p].unpack(named[name])
        return named

    def learned_rows(self):
        """((layer, group), part, rows int64 [n] or None for all, their values [n, K] as products read them), by matrix."""
        for key, p, _, name in self._parts():
            rows = self.rows[name]
            yield key, p, None if rows is None else rows.long(), self._current_rows(key, p, name)

    def slot_copy(self, slot: int = 0) -> dict[str, torch.Tensor]:
        """All that its next steps depend on: what the masters follow, the statistics, and where rows are chosen all rows and the choice."""
        own = {**self.state.slot(slot), "stat": self.state.stat, "prior_rate": self.state.prior_rate}
        if not self.full:
            own.update({f"rows.{name}": rows for name, rows in self.rows.items()}, prior=self.state.prior)
        copied = {name: t.clone() for name, t in own.items() if t is not None}
        copied["updates"], copied["passes"] = torch.tensor(self.updates), torch.tensor(self.passes)
        return copied if self.full else {**copied, **{f"weight.{name}": t for name, t in self.weights().items()}}

    def slot_load(self, slot: int, saved) -> None:
        """Where ``slot_copy`` was taken; every tensor stays where it is in memory."""
        self.updates, self.passes = int(saved["updates"]), int(saved["passes"])
        for name in ("stat", "prior_rate") if self.full else ("stat", "prior_rate", "prior"):
            if name in saved:
                getattr(self.state, name).copy_(saved[name])
        self.state.slot_load(slot, saved)
        if self.full:
            self._write_back()
            return
        for key, p, _, name in self._parts():
            self.matrices[key][p].update_rows(None, saved[f"weight.{name}"].to(self.device, self.state.master.dtype))
            self._set_rows(name, saved[f"rows.{name}"])

    def tensors(self) -> dict[str, torch.Tensor]:
        saved = dict(self.state.tensors())
        saved["updates"], saved["passes"] = torch.tensor(self.updates), torch.tensor(self.passes)
        saved.update({f"rows.{name}": rows for name, rows in self.rows.items() if rows is not None})
        saved.update({f"reference.{name}": scores for name, scores in self.reference.items()})
        saved.update({f"weight.{name}": t for name, t in self.weights().items()})
        return saved

    def load(self, saved) -> None:
        saved = dict(saved)
        self.updates, self.passes = int(saved.pop("updates")), int(saved.pop("passes"))
        for key, p, _, name in self._parts():
            self.matrices[key][p].update_rows(None, saved.pop(f"weight.{name}").to(self.device, self.state.master.dtype))
            if f"rows.{name}" in saved:
                self._set_rows(name, saved.pop(f"rows.{name}").to(self.device))
        reference = {name: saved.pop(f"reference.{name}") for *_, name in self._parts() if f"reference.{name}" in saved}
        self.reference = {name: scores.to(self.device) for name, scores in reference.items()}
        self._say_what_lacks()
        self.state.load(saved)
