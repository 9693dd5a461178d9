"""The processes of one run: their numbers, their shares of the work, and how they agree.

Everything here goes through torch.distributed on the CPU (gloo), with a handful of small messages a step; gradients go their own
way (data_parallel.py, sharded.py). A process that fails before the first step (a missing file, another text) makes all of them
stop with its message. One that dies later is torchrun's to notice, which ends the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


class ProcessError(RuntimeError):
    """The processes of a run don't fit together; the message says which one differs, and in what."""


@dataclass(frozen=True)
class Processes:
    """This process's place: rank 0..world-1 among all, local_rank among those of its machine. Alone: rank 0 of 1."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks to people."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: neighbours, and all shares as equal as can be."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element by element over all processes, in place; of a tensor on the CPU. Every process gets the same bits."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def rows(self, mine: torch.Tensor, count: int) -> torch.Tensor:
        """All ``count`` rows [count, ...] from every process's own, those of ``share(count)``."""
        if self.world == 1:
            return mine
        whole = mine.new_zeros(count, *mine.shape[1:])  # the others add zeros here: exact
        own = self.share(count)
        whole[own.start : own.stop] = mine
        return self.sum(whole)

    def any(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.world == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def counts(self, mine: Mapping[str, int]) -> dict[str, int]:
        """Whole numbers by name, added up over processes; all have the same names."""
        return dict(zip(mine, self.sum(torch.tensor(list(mine.values()), dtype=torch.int64)).tolist()))

    def all(self, mine: Value) -> list[Value]:
        """Every process's object, by rank. For what is small and rare: it is pickled."""
        if self.world == 1:
            return [mine]
        gathered: list = [None] * self.world
        dist.all_gather_object(gathered, mine)
        return gathered

    def together(self, work: Callable[[], Value]) -> Value:
        """``work()`` on every process; where it fails on one, it fails on all.

        The first process raises its own exception; the others, and it for theirs, raise ProcessError with the words of one that
        failed.
        """
        if self.world == 1:
            return work()
        value = error = None
        try:
            value = work()
        except Exception as failed:  # noqa: BLE001  (whatever it was, the others must not wait)
            error = failed
        failures = {rank: text for rank, text in enumerate(self.all(None if error is None else str(error))) if text is not None}
        if error is not None and self.first:
            raise error
        if failures:
            rank, text = next(iter(failures.items()))
            raise ProcessError(f"process {rank} of {self.world}: {text}") from error
        return value

    def from_first(self, work: Callable[[], Value]) -> Value:
        """What ``work()`` gives on the first process, on all of them; it runs nowhere else."""
        return self.all(self.together(lambda: work() if self.first else None))[0]

    def same(self, facts: Mapping[str, object]) -> None:
        """Refuses by name a fact that isn't the same everywhere."""
        first, *others = self.all(dict(facts))
        for rank, theirs in enumerate(others, start=1):
            for name in first:
                if theirs[name] != first[name]:
                    raise ProcessError(
                        f"{name} differs between processes: {first[name]!r} in process 0, {theirs[name]!r} in "
                        f"process {rank}; start all of them with the same arguments, data and version"
                    )

    def device(self, wanted: str) -> str:
        """The device of this process: of several on one machine each takes a GPU of its own.

        Raises:
            ProcessError: a GPU was named by number, or there are fewer of them than processes.
        """
        if self.world == 1 or wanted == "cpu" or not torch.cuda.is_available():
            return wanted
        if wanted not in ("auto", "cuda"):
            raise ProcessError(f"device {wanted!r} with {self.world} processes: give cuda, and each takes a GPU of its own")
        if self.local_rank >= torch.cuda.device_count():
            raise ProcessError(
                f"process {self.rank}: {torch.cuda.device_count()} GPUs are here and this is number "
                f"{self.local_rank + 1} of its machine; start fewer processes, or give --device cpu"
            )
        return f"cuda:{self.local_rank}"


ALONE = Processes()


@contextmanager
def join(patience: timedelta = timedelta(minutes=30)) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone; a process group that is there already is used and left.

    Gradients of GPUs go through NCCL, everything else through gloo. patience: how long one may wait for another.
    """
    started = False
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            yield ALONE
            return
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
        started = True
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        if started:
            dist.destroy_process_group()
