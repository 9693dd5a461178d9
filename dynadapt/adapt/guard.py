"""The guard: the model as it was, scored beside the one that learns, and the two mixed so that learning can do no harm.

A guarded stream's score is a mixture by fixed share (mixture.py) of two experts: the prior, which is the model with the weights that it
was loaded with, and the adapted one. Its loss over a document of n tokens is at most that of the better of the two plus
ln 2 + (n-1) ln(1/(1-share)), on any text and at any rate: with the share of 1e-4, 0.69 nats and 1e-4 a token. A change of the better
one in the middle of a document costs ln(1/share) = 9.2 nats.

``every`` = 1, "exact": the prior is scored on every segment. With ``every`` = N it is scored on a document's first segment, on every N-th
behind the last that it was scored on, and on every segment for as long as its weight is above a half. On segments between, the adapted score stands
and weights rest. What then holds, with n the tokens of the segments that were looked at:

- against the adapted one, over the whole document: the bound, since between looks the two scores are the same;
- against the prior, over the segments looked at: the bound, since which those are depends on earlier tokens alone. Of the others nothing is
  promised but that the adapted one had led when they began: harm that begins there lasts N - 1 segments before it is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynadapt.common.checks import LARGEST, integer, is_integer, keep, number, wrong

EXPECTED = '"exact", a number of segments (2: the prior is scored on every second one), Guard(every, share), or None for no guard'


@dataclass(frozen=True)
class Guard:
    """The score is never worse than the prior's, up to a bound (this module's docstring).

    Args:
        every: the prior is scored on every N-th segment, and on all while it leads; 1: on all, the exact guard.
        share: of its weight that each of the two gives to the other at each token, 0 < share <= 0.5; 1e-4 expects a change of the better
            one in 10,000 tokens.
    """

    every: int = 1
    share: float = 1e-4

    def __post_init__(self):
        keep(
            self,
            every=integer("every", self.every),
            share=number("share", self.share, "a number, 0 < share <= 0.5", lambda x: 0 < x <= 0.5),
        )


def as_guard(guard) -> Guard | None:
    """A ``Guard`` or None, of one, "exact", a number of segments, or None."""
    if guard is None or isinstance(guard, Guard):
        return guard
    if guard is Guard or isinstance(guard, str) and guard == "exact":
        return Guard()
    if is_integer(guard) and 1 <= guard <= LARGEST:
        return Guard(every=int(guard))
    raise wrong("guard", guard, EXPECTED)
