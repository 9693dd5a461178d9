"""The optimizer step for jax, in the memory of its inputs."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import wraps
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dynadapt.common.outdated import warn
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


def _kind_first(function):
    """``update(kind, state, slots, lr, ...)`` with a rule's numbers one by one, as it was before."""

    @wraps(function)
    def call(*args, **given):
        if not ("kind" in given or args and isinstance(args[0], str)):
            return function(*args, **given)
        kind, rest = (given.pop("kind"), args) if "kind" in given else (args[0], args[1:])
        rule = UpdateRule(kind, **{f.name: given.pop(f.name) for f in fields(UpdateRule)[1:] if f.name in given})
        warn(f"update({kind!r}, state, ...)", f"update(state, UpdateRule({kind!r}, ...), slots, lr), or an optimizer's rule(): {rule}")
        return function(rest[0], rule, *rest[1:], **given) if rest else function(rule=rule, **given)

    return call


@_kind_first
def update(state: State, rule: UpdateRule, slots, lr, *, prior=None, stat=None, prior_rate=None):
    """(state, norms [S], skipped int32 [S]) after one step of the streams in ``slots`` int32 [S]; lr float32 [slots].

    rule: what an optimizer's ``rule()`` gives, such as ``Adam(clip=1.0).rule()``; prior, stat, prior_rate float32 [P].

    XLA lets the new state take the memory of the old one. Inside jit with the state donated (``donate_argnums``) nothing is
    copied; otherwise XLA copies first, and the old state stays as it was. A stream whose gradient is not finite is skipped.

    Raises:
        ValueError: for what is no rule, an unknown kind or a state without ``step``. Shapes and dtypes are checked where the function runs.

    Source: ``dynadapt.ops.update``.
    """
    if not isinstance(rule, UpdateRule):
        raise ValueError(f"rule={rule!r}: expected an UpdateRule, which is what an optimizer's rule() gives")
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
