"""Flat buffers: all learned tensors of a stream side by side in one row, so that one call updates them all.

master, grad and the optimizer's moments are [slots, P]; ``view(buffer, name)`` is the tensor ``name`` of every slot,
[slots, *shape], without a copy. Tensors start at multiples of 32 elements; the gaps stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from dynadapt.adapt.hypergradient import Hypergradient
from dynadapt.ops import hypergradient
from dynadapt.ops.matrix_update import Matrix, Parts, matrix_update
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.update import UpdateState

ALIGN = 32
Block = tuple[int, int, int, int]


class FlatLayout:
    """Where each named tensor lies in a row of P elements."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], matrices: dict[str, list[Block]], unused: int = 0):
        """``matrices``: the tensors in which matrices of layers lie, with the first row, rows, first column and columns of each.
        ``unused``: elements of the tensors that stay zero, which are no parameters."""
        self.shapes = dict(shapes)
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, shape in shapes.items():
            self.offsets[name] = self.size
            self.size += -(-math.prod(shape) // ALIGN) * ALIGN
        self.parameters = sum(math.prod(s) for s in shapes.values()) - unused
        places = [
            Matrix(self.offsets[name] + row * shapes[name][1] + column, rows, columns, shapes[name][1])
            for name, blocks in matrices.items()
            for row, rows, column, columns in blocks
        ]
        elsewhere = [(start, start + math.prod(shapes[name])) for name, start in self.offsets.items() if name not in matrices]
        self.parts = Parts(tuple(places), tuple(elsewhere))

    def view(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        """[slots, *shape] into ``buffer`` [slots, P] (or [*shape] into [P])."""
        shape, start = self.shapes[name], self.offsets[name]
        stop = start + math.prod(shape)
        return buffer[start:stop].view(shape) if buffer.dim() == 1 else buffer[:, start:stop].view(-1, *shape)


class FlatState(UpdateState):
    """Master weights, gradients and optimizer state of ``slots`` streams over one layout."""

    sharded = False  # distributed/sharded.py: an update there has the working weights follow the masters by itself

    moving_rates: Hypergradient | None = None
    last: Any = None  # [slots, P] where rates move: what the last update subtracted
    log_rate: Any = None  # [slots, tensors], with it

    def __init__(
        self, layout: FlatLayout, slots: int, optimizer, dtype: torch.dtype, separate_working: bool, device="cpu", keep_grad: bool = True
    ):
        master_dtype = wide_dtype(dtype)
        zeros = lambda dtype=master_dtype: torch.zeros(slots, layout.size, dtype=dtype, device=device)  # noqa: E731
        kind = optimizer.rule().arithmetic
        uses = {*optimizer.rule().uses, *(kind.elsewhere if layout.parts.elsewhere else ())}
        self.layout, self.parts = layout, layout.parts
        self.optimizer = optimizer
        self.master = zeros()
        self.grad = zeros() if keep_grad else None  # None: the gradient kernels update, and no gradient is kept
        self.keep_grad = keep_grad
        self.first = zeros() if "first" in uses else None
        self.second = zeros() if "second" in uses else None
        self.working = zeros(dtype) if separate_working and dtype != master_dtype else None
        self.prior: torch.Tensor | None = None  # [P] of all slots, or [slots, P]
        self.stat: torch.Tensor | None = None  # [P], RMS only
        self.prior_rate: torch.Tensor | None = None  # [P], RMS only
        self.rate_factor: torch.Tensor | None = None  # [P], where learning rates differ; made of settings, not saved
        self.step = torch.zeros(slots, dtype=torch.int32, device=device)
        self.ungathered: str | None = None  # who else needs statistics that nobody has gathered yet
        self.average: Callable[[], None] | None = None  # several processes: makes ``grad`` their mean (dynadapt/distributed)

    def move_rates(self, rule: Hypergradient) -> None:
        """Each tensor's learning rate moves by ``rule`` from now on."""
        starts = [*self.layout.offsets.values(), self.layout.size]
        self.moving_rates, self.last = rule, torch.zeros_like(self.master)
        self.log_rate = self.master.new_zeros(len(self.master), len(starts) - 1)
        self.offsets = torch.tensor(starts, device=self.master.device)

    @property
    def updated(self) -> int:
        """Parameters of a slot that an update here moves."""
        return self.layout.parameters

    @property
    def own_priors(self) -> bool:
        """Whether each slot has a prior of its own."""
        return self.prior is not None and self.prior.dim() == 2

    @property
    def compute(self) -> torch.Tensor:
        """The buffer that products read: the working copy, or the master when they are of one dtype."""
        return self.master if self.working is None else self.working

    def set_statistics(self, mean_square: torch.Tensor) -> None:
        """Krause's frozen statistics from the mean of squared gradients [P] (see ``optimizers.RMS``)."""
        self.stat = mean_square.sqrt()
        means = [self.layout.view(self.stat, name).mean() for name in self.layout.shapes]
        rate = self.stat / torch.stack(means).mean()
        decay = self.optimizer.decay
        self.prior_rate = rate.clamp(max=1 / decay) if decay else rate

    @property
    def lacks_statistics(self) -> str | None:
        """Who needs gradient statistics that nobody has gathered, as an argument of the engine."""
        return f"optimizer={self.optimizer!r}" if self.optimizer.uses_statistics and self.stat is None else self.ungathered

    def check_statistics(self) -> None:
        """Raises RuntimeError where the optimizer divides by statistics that nobody has gathered, or rows are chosen by such."""
        if self.lacks_statistics:
            raise RuntimeError(f"{self.lacks_statistics} has no gradient statistics yet: call Engine.gather_statistics(segments) first")

    def update(self, op, slots: torch.Tensor, lr: torch.Tensor, norms=None, skipped=None) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step for ``slots`` int32 [S] (-1: does not move); returns gradient norms [S] and skipped int32 [S]."""
        self.check_statistics()
        if norms is None:
            norms = torch.zeros(len(slots), dtype=torch.float32, device=slots.device)
            skipped = torch.zeros(len(slots), dtype=torch.int32, device=slots.device)
        if self.average is not None:
            self.average()
        rule, step = self.optimizer.rule(), partial(matrix_update, op) if self.optimizer.rule().arithmetic.prepared else op
        if self.moving_rates is None:
            step(self, rule, slots, lr, norms, skipped)
        else:
            self._update_and_move_rates(self.moving_rates, partial(step, self, rule, slots, lr, norms, skipped), slots, skipped)
        return norms, skipped

    def _update_and_move_rates(self, rule: Hypergradient, step: Callable[[], None], slots: torch.Tensor, skipped: torch.Tensor) -> None:
        """``step`` of each slot that moves, as long as its rates by then make it. The host looks at which do."""
        moving, grad = [slot for slot in slots.tolist() if slot >= 0], self.take_gradients()
        turn = partial(hypergradient.turned, offsets=self.offsets, step=rule.step, limit=rule.limit)
        turned = [turn(self.log_rate[s].double(), grad[s], self.last[s]) for s in moving]
        before = [self.master[s].clone() for s in moving]
        step()
        left_out = {slot for slot, flag in zip(slots.tolist(), skipped.tolist()) if flag}
        for s, was, rates in zip(moving, before, turned):
            if s not in left_out:
                self.log_rate[s] = rates
                hypergradient.scaled(was, self.master[s], self.last[s], self.log_rate[s], self.offsets)
                if self.working is not None:
                    self.working[s] = self.master[s]

    def state_of(self, name: str) -> UpdateState:
        """Views of one named tensor in all buffers, without the count; the prior where it is that of all slots."""
        views = {f.name: getattr(self, f.name) for f in fields(UpdateState) if f.name != "step"}
        if self.own_priors:
            del views["prior"]
        views = {field: None if t is None else self.layout.view(t, name) for field, t in views.items()}
        return UpdateState(views.pop("master"), **views)

    def take_gradients(self) -> torch.Tensor:
        """``grad``, made for the moment where none is kept; ``release_gradients`` gives it back."""
        if self.grad is None:
            self.grad = torch.zeros_like(self.master)
        return self.grad

    def release_gradients(self) -> None:
        if not self.keep_grad:
            self.grad = None

    def clear(self, slot: int) -> None:
        """Zero the optimizer's memory of one slot."""
        for buffer in (self.grad, self.first, self.second, self.last, self.log_rate):
            if buffer is not None:
                buffer[slot].zero_()
        self.step[slot] = 0

    def put_back(self, op, flags: torch.Tensor, slots: torch.Tensor, kept: torch.Tensor | None) -> None:
        """Of the ``slots`` int32 [S], those that ``flags`` mark go back to the prior, on the device alone (ops/reset.py)."""
        op(flags, slots, self.prior, self.master, self.working, self.grad, self.first, self.second, self.step, kept)

    def slot(self, slot: int) -> dict[str, torch.Tensor]:
        """Views of what one slot has of its own, but for the working copy, which follows the master."""
        names = ("master", "grad", "first", "second", "step", "last", "log_rate", *["prior"] * self.own_priors)
        named = {name: getattr(self, name) for name in names}
        return {name: t[slot] for name, t in named.items() if t is not None}

    def slot_load(self, slot: int, saved: dict[str, torch.Tensor]) -> None:
        """Copies of what ``slot`` gave into one slot; a gradient is kept on either side once one has had to wait."""
        if "grad" in saved and self.grad is None:
            self.keep_grad = True
            self.take_gradients()
        for name, view in self.slot(slot).items():
            view.copy_(saved[name]) if name in saved or name != "grad" else view.zero_()
        if self.working is not None:
            self.working[slot].copy_(self.master[slot])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that resuming exactly needs."""
        names = [*(f.name for f in fields(UpdateState) if f.name not in ("working", "rate_factor")), "last", "log_rate"]
        named = {name: getattr(self, name) for name in names}
        return {name: t for name, t in named.items() if t is not None}

    def load(self, saved: dict[str, torch.Tensor]) -> None:
        """Take back what ``tensors`` gave; statistics that it did not have are let go of."""
        self.stat, self.prior_rate = (getattr(self, name) if name in saved else None for name in ("stat", "prior_rate"))
        for name, t in saved.items():
            current = getattr(self, name)
            if current is None or current.shape != t.shape:  # priors may be each slot's own or not
                setattr(self, name, t.to(self.master.device, copy=True))
            else:
                current.copy_(t)
        if self.working is not None:
            self.working.copy_(self.master)
