"""A stream that starts from an adapter that is given, instead of one that adds nothing."""

from __future__ import annotations

import torch

from dynadapt.common.checks import flag, path

from . import snapshots
from .learners.peft import adapter_row


def row_of(engine, stream: int, adapter, prior: bool) -> torch.Tensor | None:
    """The adapter [P] of ``Engine.enter``'s arguments, or None; all that can be refused is, and nothing changes.

    Raises:
        ValueError: naming the argument that does not fit this engine; ``ModelError`` for an adapter that can't be read.
    """
    prior = flag("prior", prior)
    if adapter is None:
        if prior:
            raise ValueError("prior=True with adapter=None: give the adapter that resets and decay are to lead back to")
        return None
    row = (
        _of_snapshot(engine, stream, adapter)
        if isinstance(adapter, snapshots.StreamSnapshot)
        else read(engine, stream, path("adapter", adapter))
    )
    if prior:
        _check_prior(engine, stream)
    return row


def read(engine, stream: int, directory) -> torch.Tensor:
    """[P] of a PEFT adapter's directory, as ``stream`` holds it."""
    _check_lora(engine)
    return adapter_row(directory, engine.driver.step.learner(stream), engine.model)


def load(engine, stream: int, directory) -> None:
    """See ``Engine.load_adapter``."""
    row, step = read(engine, stream, directory), engine.driver.step
    engine.calls.moving()
    step.learner(stream).start(step.slot(stream), row)
    step.drop_gradient(stream)


def start(engine, stream: int, row: torch.Tensor, prior: bool) -> None:
    """The stream starts with the adapter ``row``; with ``prior`` that is its prior."""
    step = engine.driver.step
    if prior:
        state = step.learner(stream).state
        before = state.prior
        step.learner(stream).take_prior(step.slot(stream), row)
        if state.prior is not before:
            engine.driver.drop_recordings()  # they hold its address
    step.start(stream, row)


def _of_snapshot(engine, stream: int, snapshot) -> torch.Tensor:
    _check_lora(engine)
    snapshots.check(engine, stream, snapshot, "adapter")
    return snapshot.learned["master"]


def _check_lora(engine) -> None:
    if engine.adapt is None or engine.settings.owns_weights:
        raise ValueError(f"adapt={engine.adapt!r}: only an engine with LoRA takes adapters")


def _check_prior(engine, stream: int) -> None:
    learner = engine.driver.step.learner(stream)
    if learner.adapt.keep_a:
        raise ValueError(
            "prior=True with adapt=LoRA(keep_a=True): a reset would lead back to its B alone, which is no adapter without its A"
        )
    if engine.guarding is not None and engine.guarding.alarms is not None:
        raise ValueError(
            f"prior=True with guard={engine.guard!r} and reset={engine.reset_policy!r}: a stream that the model as it was overtakes goes on as it would, with "
            "its memory; use another reset, or no prior"
        )
    if engine.driver.step.fused and learner.state.optimizer.decay:
        raise ValueError(
            f"prior=True with optimizer={engine.optimizer!r} on fixed shapes: its update rides in the gradient kernels, which know one "
            "prior of all streams; use decay=0, or clip > 0 (then the update is a launch of its own)"
        )
