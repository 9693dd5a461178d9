"""Masters and optimizer state spread over processes by torch's FSDP2 (``fully_shard``); each process keeps 1/N of them.

The learned tensors are one flat parameter here. FSDP2 shards it, and its two collectives do the work of a step:

1. forward of the stand-in module: all-gather of the masters, from which the working weights are written; then the whole is freed;
2. (the engine's own step: scores, gradients of this process's rows)
3. backward of the stand-in: reduce-scatter, after which each process has its part of the mean gradient;
4. norm over all parts, clip, and the engine's update on the part; then 1 again, for the next step.

What every process still keeps whole are the working weights and its own float32 gradient, since the engine's kernels read and
write those: it is optimizer state and masters that are sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dynadapt.engine.learners.flat import FlatState
from dynadapt.ops.update import UpdateState

from .data_parallel import EngineGradient
from .processes import Processes

PIECE = 1 << 22  # elements
REDUCE = {"none": None, "bf16": torch.bfloat16}


class _Flat(nn.Module):
    """The masters [P] as one parameter, with the engine's gradient as its gradient."""

    def __init__(self, master: torch.Tensor, gradient: torch.Tensor, gathered: Callable[[torch.Tensor], None]):
        super().__init__()
        self.master = nn.Parameter(master)
        self._gradient, self._gathered = gradient, gathered

    def forward(self) -> torch.Tensor:
        self._gathered(self.master.detach())
        return EngineGradient.apply(lambda: [self._gradient], self.master)


class ShardedState(FlatState):
    """Takes the place of a learner's FlatState (one slot), from whose values it starts and which it empties.

    Args:
        write_back: has everything that products read follow ``master`` [1, P], which exists for just that long.
        reads_flat: whether products read the flat buffer of the masters itself; it is then kept, as working weights.
        compress: "none", or "bf16": gradients are summed over processes in bf16.
    """

    sharded = True

    def __init__(self, state: FlatState, processes: Processes, write_back: Callable[[], None], reads_flat: bool, compress: str = "none"):
        if state.stat is not None or state.optimizer.uses_statistics:
            raise ValueError(f"optimizer={type(state.optimizer).__name__} with shard: its gradient statistics can't be sharded")
        if state.optimizer.rule().arithmetic.prepared:
            raise ValueError(
                f"optimizer={type(state.optimizer).__name__} with shard: it moves matrices as wholes, and no process would have them whole"
            )
        self.layout, self.optimizer, self.grad, self.step = state.layout, state.optimizer, state.grad, state.step
        self.keep_grad, self.stat, self.prior_rate, self.average, self.ungathered = True, None, None, None, None
        self.processes, self.write_back = processes, write_back
        self.working = state.master if reads_flat and state.working is None else state.working
        self.master = self.whole = None
        each = -(-self.layout.size // processes.world)  # FSDP2 cuts as torch.chunk does
        self.start = min(processes.rank * each, self.layout.size)
        self.count = min(each, self.layout.size - self.start)
        self.first, self.second, self.prior = (self._cut(state, name) for name in ("first", "second", "prior"))
        self.module = _Flat(state.master[0], self.grad[0], self._follow)
        state.master = None
        mesh = init_device_mesh(self.grad.device.type, (processes.world,))
        fully_shard(self.module, mesh=mesh, reshard_after_forward=True, mp_policy=MixedPrecisionPolicy(reduce_dtype=REDUCE[compress]))
        self.module.set_unshard_in_backward(False)  # the gradient needs no weights: it is there already
        self.pending = None  # the forward that the next backward belongs to

    # ---- parts and wholes

    @property
    def part(self) -> torch.Tensor:
        """This process's masters [1, n]."""
        return self.module.master.to_local().detach().view(1, -1)

    def _cut(self, state: FlatState, name: str) -> torch.Tensor | None:
        """This process's piece [1, n] of a flat buffer [P]; the whole is let go of."""
        whole = getattr(state, name)
        setattr(state, name, None)
        return None if whole is None else whole.view(-1)[self.start : self.start + self.count].clone().view(1, -1)

    def _whole_of(self, part: torch.Tensor) -> torch.Tensor:
        """[P] from every process's part."""
        master = self.module.master
        return DTensor.from_local(
            part.view(-1), master.device_mesh, master.placements, run_check=False, shape=master.shape, stride=master.stride()
        ).full_tensor()

    @property
    def updated(self) -> int:
        return round(self.layout.parameters * self.count / self.layout.size)

    @property
    def compute(self) -> torch.Tensor:
        return self.working

    # ---- a step

    def gather(self) -> None:
        """Working weights follow the masters of all processes."""
        self.pending = self.module()

    def _follow(self, master: torch.Tensor) -> None:
        self.master = master.view(1, -1)
        if self.working is not None:
            self.working.copy_(self.master)
        self.write_back()
        self.master = None

    def update(self, op, slots: torch.Tensor, lr: torch.Tensor, norms=None, skipped=None) -> tuple[torch.Tensor, torch.Tensor]:
        """As FlatState.update, for slots [1]: the norm, the clip and the decision to skip are those of the whole gradient."""
        if norms is None:
            norms, skipped = (torch.zeros(1, dtype=dtype, device=slots.device) for dtype in (torch.float32, torch.int32))
        self.pending.backward()
        gradient = self.module.master.grad.to_local().view(1, -1)  # [1, n], averaged
        norm = self._norm(gradient)
        moving = slots >= 0
        finite = torch.isfinite(norm)
        if self.optimizer.clip:
            gradient.mul_((self.optimizer.clip / (norm + 1e-6)).clamp(max=1.0).to(gradient.dtype))
        self._move(op, gradient, torch.where(moving & finite, slots, -1), lr)
        norms.copy_(torch.where(moving, norm, 0.0))
        skipped.copy_(moving & ~finite)
        self.module.master.grad = None
        self.grad.zero_()
        self.gather()
        return norms, skipped

    def _norm(self, gradient: torch.Tensor) -> torch.Tensor:
        """2-norm of all parts, float64 [1]; a piece at a time, because float64 copies are large."""
        squares = torch.stack([piece.double().square().sum() for piece in gradient.view(-1).split(PIECE)]).sum().view(1)
        return self.processes.sum(squares.cpu()).to(squares.device).sqrt()

    def _move(self, op, gradient, slots, lr) -> None:
        norms, skipped = (torch.zeros(1, dtype=dtype, device=slots.device) for dtype in (torch.float32, torch.int32))
        prior = None if self.prior is None else self.prior[0]
        state = UpdateState(self.part, grad=gradient, first=self.first, second=self.second, prior=prior, step=self.step)
        op(state, replace(self.optimizer.rule(), clip=0.0), slots.to(torch.int32), lr, norms, skipped)

    # ---- saving

    def collect(self) -> None:
        """What ``tensors`` gives, from all processes: whole buffers, kept on the first one's host until ``release``."""
        self.whole = {}
        parts = {"master": self.part, "first": self.first, "second": self.second, "prior": self.prior}
        for name, part in parts.items():
            if part is not None:
                whole = self._whole_of(part).cpu()
                if self.processes.first:
                    self.whole[name] = whole if name == "prior" else whole.view(1, -1)

    def release(self) -> None:
        self.whole = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same as without sharding, so that a saved state can be gone on with by any number of processes."""
        if self.whole is None:
            raise RuntimeError("a sharded state can't be loaded into: restore the engine first, and shard it then")
        return {**self.whole, "grad": self.grad, "step": self.step}

    def load(self, saved) -> None:
        raise RuntimeError("a sharded state can't be loaded into: restore the engine first, and shard it then")
