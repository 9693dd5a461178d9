"""An engine that learns from the rows of all processes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from dynadapt.adapt.methods import Full
from dynadapt.engine.learners.beside import BesideLearner
from dynadapt.engine.learners.rows import RowLearner

from .processes import Processes

COMPRESSION = "compression.safetensors"
APART = "gradients are averaged over processes first"


def connect(
    engine,
    processes: Processes,
    compress: str = "none",
    powersgd_rank: int = 4,
    powersgd_start: int = 2,
    shard: bool = False,
    saved: str | Path | None = None,
) -> None:
    """From now on ``engine.step`` on every process learns from the mean of all processes' gradients, so that weights stay equal.

    The engine has ``shared=True``, the same seed everywhere, and its state restored already, where there is one. ``compress`` and
    the two numbers are as in ``DataParallel``; ``shard`` as in ``ShardedState``. On a GPU the step is not captured any more: it
    runs op by op. ``saved``: directory that the engine was restored from, and ``Connected.save`` wrote.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    if not engine.shared or not engine.learners:
        raise ValueError(f"shared={engine.shared!r}, adapt={engine.adapt!r}: only an engine with shared=True that learns can be connected")
    if engine.learn_from is not None:
        raise ValueError(
            f"learn_from={engine.learn_from!r}: each process would choose by its own rows, and those with nothing to learn would not meet the others "
            "in an update; only an engine with learn_from=None can be connected"
        )
    if processes.world == 1:
        return
    from .data_parallel import DataParallel, row_scores_of_all  # torch's own machinery takes a while to import

    learner = engine.learners[0]
    if engine.static:
        engine.static.capture, engine.static.step.why_not_fused = False, APART
        learner.state.keep_grad = True
        learner.state.take_gradients()
    if isinstance(learner, RowLearner):
        learner.scores_of_all = partial(row_scores_of_all, processes)
    if shard:
        _shard(engine, learner, processes, compress)
    else:
        learner.state.average = DataParallel(learner.state, compress, powersgd_rank, powersgd_start)
        if compress == "powersgd" and saved is not None:
            learner.state.average.load(load_file(str(Path(saved) / COMPRESSION)))


def _shard(engine, learner, processes: Processes, compress: str) -> None:
    from .sharded import REDUCE, ShardedState

    if not isinstance(engine.adapt, Full):
        raise ValueError(f"shard with adapt={type(engine.adapt).__name__}: only Full has masters and moments worth sharding")
    if compress not in REDUCE:
        raise ValueError(f"compress={compress!r} with shard: FSDP2 sums in float32 or bf16; expected one of {', '.join(REDUCE)}")
    same = learner.dtype == learner.state.master.dtype
    reads_flat = same and (learner.in_place or isinstance(learner, BesideLearner))
    learner.state = ShardedState(learner.state, processes, learner._write_back, reads_flat, compress)
    learner.state.gather()


@dataclass(frozen=True)
class Connected:
    """What the first process saves: the engine, and what the compression of gradients carries along."""

    engine: object
    compression: dict

    def save(self, directory) -> None:
        self.engine.save(directory)
        if self.compression:
            save_file(self.compression, str(Path(directory) / COMPRESSION))


@contextmanager
def collected(engine):
    """Gives what is to be saved of a connected engine, while it can be; all processes take part, and the first one saves."""
    state = engine.learners[0].state
    if state.sharded:
        state.collect()
    try:
        yield Connected(engine, state.average.tensors() if state.average is not None else {})
    finally:
        if state.sharded:
            state.release()
