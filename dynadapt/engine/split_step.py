"""A step's arguments, and its two halves as calls of their own: the gradient, which waits and adds up, and the update.

Which streams have a gradient that waits is ``StreamState.waiting``, of the host alone; the gradients are where those of a step are.
"""

from __future__ import annotations

import torch

from dynadapt.adapt.methods import HEAD
from dynadapt.common.checks import wrong

from .buffers import StepCall
from .losses import check_loss
from .memory import Overlap
from .report import StepReport
from .settings import NEVER
from .step_arguments import check_lengths, check_streams, check_tokens, check_weights


def checked(engine, tokens, lengths, streams, weights, looks: bool, loss="cross_entropy", inputs=None) -> StepCall:
    """The arguments of ``Engine.step`` and ``Engine.forward_backward``."""
    if engine.learners:
        engine.learners[0].state.check_statistics()
    streams = check_streams(streams, engine.streams)
    tokens = check_tokens(tokens, len(streams), engine.segment + 1, engine.config.vocab_size, engine.device, looks)
    if tokens.device.type != "cpu" and isinstance(engine.memory, Overlap):
        raise ValueError(f"tokens is on {tokens.device}: memory=Overlap needs them on the CPU, where it keeps the last ones")
    rows, width, wide = len(streams), tokens.shape[1] - 1, engine.decoder.stat_dtype
    lengths = check_lengths(lengths, rows, width)
    weights = None if weights is None else check_weights(weights, lengths, width, engine.shared, wide)
    return StepCall(tokens, lengths, streams, weights, check_loss(loss, inputs, rows, width, engine.config.vocab_size, wide))


def waiting(engine) -> list[int]:
    """Streams with a gradient that no update has used."""
    return [stream for stream, state in enumerate(engine.state) if state.waiting]


def refuse_waiting(engine, streams: list[int]) -> None:
    """Raises RuntimeError where a step of ``streams`` would write over a gradient that waits."""
    held = [] if engine.accumulate else [s for s in waiting(engine) if engine.shared or s in streams]
    if held:
        raise RuntimeError(f"step: a gradient of forward_backward waits for streams {held}: call optim_step first, or reset them")


def forward_backward(engine, tokens, lengths, streams, weights, loss, inputs) -> torch.Tensor:
    """See ``Engine.forward_backward``."""
    if not engine.learners:
        raise ValueError("adapt=None: nothing learns in this engine, expected LoRA(...), RowSparse(...) or Full(...); step only scores")
    if engine.slow is not None:
        raise ValueError(f"forward_backward with slow={engine.slow!r}: the slow level learns from what step scores; use step, or slow=None")
    if engine.learn_from is not None:
        raise ValueError(
            f"forward_backward with learn_from={engine.learn_from!r}: gradients of several calls add up, and an update is made by call; use step, or "
            "weights that are 0 where nothing is to be learned"
        )
    if engine.every == NEVER:
        raise RuntimeError("forward_backward: learn_no_more has ended learning in this engine; step only scores")
    if engine.static is not None and engine.settings.watches:
        raise ValueError(
            "reset='auto' with forward_backward and static=True: which streams go back is only known on the device; use static=False, "
            "or reset at documents or every N tokens"
        )
    if engine.settings.alarm is not None and engine.settings.alarm.slower < 1:
        raise ValueError(
            f"reset={engine.reset_policy!r} with forward_backward: the update is a call of its own, with a rate of its own; use slower=1, or step"
        )
    given = checked(engine, tokens, lengths, streams, weights, True, loss, inputs)
    if given.loss.name == "kl" and (engine.config.layers, HEAD) in engine.learners[0].sizes:
        raise ValueError(
            f"loss='kl' with adapt={engine.adapt!r}: the head's adapter learns from cross_entropy and importance_sampling; leave the head "
            "out of targets, or use another loss"
        )
    with engine._counted():
        nll, engine.last = engine._run(given, apart=True)
    return nll


def optim_step(engine, streams, lr) -> StepReport:
    """See ``Engine.optim_step``."""
    rate, held = None if lr is None else engine._check_lr(lr), waiting(engine)
    if streams is not None:
        if engine.shared:
            raise wrong("streams", streams, "None with shared=True, whose rows share one set of weights")
        asked = check_streams(streams, engine.streams)
        if missing := [stream for stream in asked if stream not in held]:
            raise ValueError(f"streams={asked}: no gradient waits for {missing}; expected streams of forward_backward, here {held}")
        held = asked
    if not held:
        raise RuntimeError("optim_step: no gradient waits; call forward_backward first")
    with engine._counted():
        engine.last = engine.driver.update(held, rate)
    return engine.last
