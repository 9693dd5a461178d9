"""Gradients averaged over processes by torch's own DistributedDataParallel, communication hooks included.

The engine computes its gradients itself, so autograd has nothing to hook into. A module whose parameters are views of the
engine's masters stands in: its backward hands the engine's gradients to autograd as they are, DDP's reducer puts them into
buckets, sends them through the hook, and leaves the average where they were. Nothing is computed twice. What is lost is overlap:
gradients travel after the backward, not during it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from .processes import Processes

COMPRESSIONS = ("none", "bf16", "powersgd")
POWERSGD_START = 2  # the least number of updates that torch's PowerSGD leaves alone


class EngineGradient(torch.autograd.Function):
    """A zero that depends on ``parameters``, whose gradients are what ``gradients()`` returns."""

    @staticmethod
    def forward(ctx, gradients, *parameters):
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.gradients()


class _Standin(nn.Module):
    """One parameter for each learned tensor, in the engine's own memory: PowerSGD needs their shapes."""

    def __init__(self, state):
        super().__init__()
        self.state = state
        views = [state.layout.view(state.master, name)[0] for name in state.layout.shapes]
        self.learned = nn.ParameterList([nn.Parameter(view) for view in views])

    def gradients(self) -> list[torch.Tensor]:
        return [self.state.layout.view(self.state.grad, name)[0] for name in self.state.layout.shapes]

    def forward(self) -> torch.Tensor:
        return EngineGradient.apply(self.gradients, *self.learned)


class DataParallel:
    """Averages the gradient of one learner over processes: what ``FlatState.average`` calls before an update.

    Args:
        compress: "none"; "bf16", gradients rounded for the way; "powersgd", matrices sent as products of rank ``rank`` (Vogels
            et al. 2019, arXiv 1905.13727), with the error kept and added to the next gradient.
        start: with powersgd, how many updates go uncompressed first.
    """

    def __init__(self, state, compress: str = "none", rank: int = 4, start: int = POWERSGD_START):
        if compress not in COMPRESSIONS:
            raise ValueError(f"compress={compress!r}: expected one of {', '.join(COMPRESSIONS)}")
        self.module = _Standin(state)
        self.parallel = DistributedDataParallel(self.module, init_sync=False)  # masters are equal: the same seed or checkpoint
        self.powersgd = None
        if compress == "bf16":
            self.parallel.register_comm_hook(None, _rounded)
        elif compress == "powersgd":
            self.powersgd = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=rank, start_powerSGD_iter=max(start, POWERSGD_START)
            )
            self.parallel.register_comm_hook(self.powersgd, powerSGD_hook.powerSGD_hook)
            self._settle()

    def __call__(self) -> None:
        """The engine's gradient buffer holds the average afterwards."""
        self._average()
        if self.powersgd is not None and not torch.isfinite(self.module.state.grad).all():
            for kept in self._kept().values():  # the update will skip this gradient; in the error it would spoil all others
                kept.clear()

    def _average(self) -> None:
        self.parallel().backward()
        for parameter, gradient in zip(self.module.learned, self.module.gradients()):
            if parameter.grad.data_ptr() != gradient.data_ptr():  # autograd kept a copy of its own
                gradient.copy_(parameter.grad)
            parameter.grad = None

    # ---- what PowerSGD carries from update to update, by bucket

    def _settle(self) -> None:
        """DDP chooses other buckets after its first backward: two passes of nothing, so that it has done so before."""
        gradient = self.module.state.grad.clone()
        self.module.state.grad.zero_()
        for _ in range(2):
            self._average()
        self.module.state.grad.copy_(gradient)
        self.powersgd.iter = 0

    def _kept(self) -> dict[str, dict[int, torch.Tensor]]:
        return {"error": self.powersgd.error_dict, "p": self.powersgd.p_memory_dict, "q": self.powersgd.q_memory_dict}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What going on needs; all processes call this, and any number of them can go on from it.

        Factors are the same everywhere, errors are not. But only their mean acts on the average, now and later, so each process's
        own gives way to it here: a run that goes on from this is the same as the one that was saved, bit for bit.
        """
        if self.powersgd is None:
            return {}
        for error in self.powersgd.error_dict.values():
            dist.all_reduce(error)
            error.div_(dist.get_world_size())
        named = {f"{kind}.{bucket}": kept for kind, by in self._kept().items() for bucket, kept in by.items()}
        return {"updates": torch.tensor(self.powersgd.iter), **named}

    def load(self, saved: dict[str, torch.Tensor]) -> None:
        """Take back what ``tensors`` gave."""
        saved = dict(saved)
        self.powersgd.iter = int(saved.pop("updates"))
        for name, kept in saved.items():
            kind, bucket = name.split(".")
            self._kept()[kind][int(bucket)] = kept.to(self.module.state.grad.device, copy=True)


def _rounded(state, bucket):
    """torch's bf16 hook. DDP asks for NCCL when it meets the hook by its own name, though gloo can carry bf16 as well."""
    return default_hooks.bf16_compress_hook(state, bucket)


def row_scores_of_all(processes: Processes, scores: torch.Tensor) -> None:
    """Row scores [O] of one process's tokens become those of all: squares add up over tokens (ops/weight_gradient.py)."""
    scores.copy_(processes.sum(scores.square().cpu()).sqrt())
