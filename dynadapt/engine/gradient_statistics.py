"""Frozen gradient statistics, gathered once, at the prior, on a text of their own: what ``RMS`` divides by (adapt/optimizers/rms.py), or
the row scores that ``RowSparse(select="contrast")`` compares with (ops/weight_gradient.py)."""

from __future__ import annotations

import torch

from dynadapt.adapt.methods import RowSparse
from dynadapt.common.checks import token_ids

from .batch import Batch
from .step_arguments import check_ids


def gather(engine, segments) -> int:
    """See ``Engine.gather_statistics``; all segments are checked before the first is used."""
    contrasts = isinstance(engine.adapt, RowSparse) and engine.adapt.select == "contrast"
    if not (engine.settings.uses_statistics or contrasts):
        raise ValueError(f"optimizer={engine.optimizer!r}: only RMS uses gradient statistics, and RowSparse(select='contrast')")
    rows = _checked(engine, segments)
    if waiting := [s for s, state in enumerate(engine.state) if state.waiting]:
        raise RuntimeError(f"gather_statistics: a gradient of streams {waiting} waits for its update: call optim_step first")
    totals = dict(engine.ledger.totals)
    engine.calls.moving()
    try:
        if contrasts:
            _gather_row_scores(engine, rows)
        else:
            _gather_squares(engine, rows)
    finally:
        engine.ledger.totals = totals
    engine.driver.drop_recordings()  # they hold the addresses of older statistics
    return len(rows)


def _gather_row_scores(engine, rows) -> None:
    with engine.learners[0].gathering() as sums:
        for row in rows:
            _prior_gradient(engine, row, engine.learners[0])
    for learner in engine.learners:
        learner.take_reference({name: total / len(rows) for name, total in sums.items()})


def _gather_squares(engine, rows) -> None:
    learner = engine.learners[0]
    try:
        squares = torch.zeros_like(learner.state.master[0])
        learner.state.take_gradients()
        for i, row in enumerate(rows):
            learner.choosing_rows = i == 0
            _prior_gradient(engine, row, learner)
            squares += learner.state.grad[0].square()
            learner.state.grad.zero_()
    finally:
        learner.state.release_gradients()
        learner.choosing_rows = False
    for other in engine.learners:
        other.take_statistics(squares / len(rows), learner)


def _checked(engine, segments) -> list[torch.Tensor]:
    """The segments as int64 [1, T+1]."""
    if isinstance(segments, (str, bytes)) or not hasattr(segments, "__iter__"):
        raise ValueError(f"segments={segments!r}: expected an iterable of rows of token ids")
    rows, longest = [], engine.window + 1
    for i, segment in enumerate(segments):
        row = token_ids(f"segments[{i}]", segment)
        if row.dim() != 1 or not 2 <= len(row) <= longest:
            raise ValueError(f"segments[{i}] has shape {tuple(row.shape)}: expected [2..{longest}] tokens")
        check_ids(row, engine.config.vocab_size, f"segments[{i}]")
        rows.append(row.view(1, -1))
    if not rows:
        raise ValueError("segments: empty; RMS needs at least one segment of statistics text")
    return rows


def _prior_gradient(engine, row: torch.Tensor, learner) -> None:
    row, decoder = row.to(engine.device), engine.decoder
    zero, count = torch.zeros(1, dtype=torch.int32, device=engine.device), row.shape[1] - 1
    weights = torch.full((count,), 1.0 / count, dtype=decoder.stat_dtype, device=engine.device)
    batch = Batch(row[:, :-1].contiguous(), zero, zero, (0,))
    with engine.without_memory():
        hidden = decoder.forward(batch, learner, engine.lowest)
        _, dhidden = decoder.score(hidden, None, row[0, 1:].contiguous(), weights)
        decoder.backward(batch, learner, engine.lowest, dhidden, False)
