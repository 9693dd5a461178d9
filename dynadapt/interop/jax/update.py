"""The optimizer step for jax, in the memory of its inputs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dynadapt.ops.update import UpdateRule, kinds_of

from .call import call, f32, like


class State(NamedTuple):
    """What a step changes, in the dtypes and shapes of ``dynadapt.ops.update``; None where the optimizer does without."""

    master: Any  # float32 [slots, P]
    grad: Any  # float32 [slots, P], zero after a step
    first: Any = None  # float32 [slots, P]
    second: Any = None
    working: Any = None  # master rounded, float32 or bfloat16 [slots, P]
    step: Any = None  # int32 [slots]


def update(state: State, rule: UpdateRule, slots, lr, *, prior=None, stat=None, prior_rate=None):
    """(state, norms [S], skipped int32 [S]) after one step of the streams in ``slots`` int32 [S]; lr float32 [slots].

    rule: what an optimizer's ``rule()`` gives, such as ``Adam(clip=1.0).rule()``; prior, stat, prior_rate float32 [P].

    XLA lets the new state take the memory of the old one. Inside jit with the state donated (``donate_argnums``) nothing is
    copied; otherwise XLA copies first, and the old state stays as it was. A stream whose gradient is not finite is skipped.

    Raises:
        ValueError: for an unknown kind or a state without ``step``. Shapes and dtypes are checked where the function runs.

    Source: ``dynadapt.ops.update``.
    """
    if rule.kind not in kinds_of("cpu"):
        raise ValueError(f"kind={rule.kind!r}: expected one of {', '.join(kinds_of('cpu'))}")
    if state.step is None:
        raise ValueError("state.step is None: expected int32 [slots], zeros at the start")
    streams = slots.shape[0]
    results = [None if t is None else like(t) for t in state] + [f32(streams), like(slots, streams, dtype=jnp.int32)]
    numbers = asdict(rule)
    *new, norms, skipped = call(
        "update",
        results,
        [*state, prior, stat, slots, lr, prior_rate],
        aliases=range(6),
        kind=np.int32(kinds_of("cpu").index(numbers.pop("kind"))),
        **{name: np.float64(v) for name, v in numbers.items()},
    )
    return State(*new), norms, skipped
