"""An engine that learns from the rows of all processes."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

from ..adapt.own_weights import RowLearner
from ..adapt.what import Full
from ..adapt.whole_model import ModelLearner
from .processes import Processes

APART = "gradients are averaged over processes first"


def connect(engine, processes: Processes, compress: str = "none", powersgd_rank: int = 4, powersgd_start: int = 2,
            shard: bool = False) -> None:
    """From now on ``engine.step`` on every process learns from the mean of all processes' gradients, so that weights stay equal.

    The engine has ``shared=True``, the same seed everywhere, and its state restored already, where there is one. ``compress`` and
    the two numbers are as in ``DataParallel``; ``shard`` as in ``ShardedState``. On a GPU the step is not captured any more: it
    runs op by op.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    if not engine.shared or not engine.learners:
        raise ValueError(f"shared={engine.shared!r}, adapt={engine.adapt!r}: only an engine with shared=True that learns can be "
                         "connected")
    if processes.world == 1:
        return
    from .data_parallel import DataParallel, row_scores_of_all  # torch's own machinery takes a while to import
    learner = engine.learners[0]
    if engine.static:
        engine.static.capture, engine.static.why_not_fused = False, APART
        learner.state.keep_grad = True
        learner.state.take_gradients()
    if isinstance(learner, RowLearner):
        learner.scores_of_all = partial(row_scores_of_all, processes)
    if shard:
        _shard(engine, learner, processes, compress)
    else:
        learner.state.average = DataParallel(learner.state, compress, powersgd_rank, powersgd_start)


def _shard(engine, learner, processes: Processes, compress: str) -> None:
    from .sharded import REDUCE, ShardedState
    if not isinstance(engine.adapt, Full):
        raise ValueError(f"shard with adapt={type(engine.adapt).__name__}: only Full has masters and moments worth sharding")
    if compress not in REDUCE:
        raise ValueError(f"compress={compress!r} with shard: FSDP2 sums in float32 or bf16; expected one of {', '.join(REDUCE)}")
    same = learner.dtype == learner.state.master.dtype
    reads_flat = same and (learner.in_place or isinstance(learner, ModelLearner))
    learner.state = ShardedState(learner.state, processes, learner._write_back, reads_flat, compress)
    learner.state.gather()


@contextmanager
def collected(engine):
    """Inside, a sharded engine can be saved by the first process; all of them take part."""
    states = [learner.state for learner in engine.learners if learner.state.sharded]
    for state in states:
        state.collect()
    try:
        yield
    finally:
        for state in states:
            state.release()
