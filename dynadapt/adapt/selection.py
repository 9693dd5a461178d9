"""Which scored tokens are learned from: rules that look at their losses, behind the score. Nothing here needs torch.

Selective backpropagation (Jiang et al. 2019, arXiv 1910.00762) leaves out examples whose loss is low among the recent ones, selective language
modelling (Lin et al. 2024, arXiv 2404.07965) tokens. Here the examples are a stream's segments. x is a segment's mean NLL, and the recent ones are those of
the last WINDOW segments of the stream's document, itself not among them:

- ``below`` = q: not learned from where x is under their q-quantile (linear between order statistics, as numpy's default);
- ``above`` = k: not learned from where x is over their mean + k standard deviations (of the sample, over n - 1);
- both from the WARMUP-th recent one on. Every scored segment enters them, learned from or not, unless its score is not finite;
- ``tokens`` = (low, high): of a segment of n tokens those count whose NLL is at least the floor(low (n-1))-th and at most the ceil(high (n-1))-th
  smallest, from 0; the mean that is learned from is over these.

All is decided behind the segment's score by scores that were made: no score depends on its own token or a later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, stdev
from typing import Any

from dynadapt.common.checks import keep, number, sequence, wrong

from .reset_policy import words_of

WINDOW = 64  # segments whose scores are kept
WARMUP = 8  # segments from which a quantile or a deviation is taken, at the least
EXPECTED = 'Selection(below, above, tokens), words such as "below=0.3,above=4,tokens=0.2:0.95", or None to learn from all tokens'


@dataclass(frozen=True)
class Selection:
    """What is learned from; each rule None: not used (this module's docstring).

    Args:
        below: a segment is left out whose mean NLL is under this quantile of the recent ones', 0 < below < 1.
        above: a segment is left out whose mean NLL is over the recent ones' mean by more than so many standard deviations, above 0.
        tokens: (low, high), quantiles of the segment's own NLLs between which its tokens count, 0 <= low < high <= 1.

    Raises:
        ValueError: naming the argument, or that no rule is given.
    """

    below: float | None = None
    above: float | None = None
    tokens: tuple[float, float] | None = None

    def __post_init__(self):
        share = lambda x: 0 < x < 1  # noqa: E731
        if self.below is not None:
            keep(self, below=float(number("below", self.below, "a quantile, 0 < below < 1, or None", share)))
        if self.above is not None:
            keep(self, above=float(number("above", self.above, "a number of standard deviations > 0, or None", lambda x: x > 0)))
        if self.tokens is not None:
            keep(self, tokens=_quantiles(self.tokens))
        if self.below is None and self.above is None and self.tokens is None:
            raise ValueError(f"Selection() has no rule, and would learn from all: expected {EXPECTED}")

    @property
    def word(self) -> str:
        """As the command line has it."""
        said = ((f.name, getattr(self, f.name)) for f in fields(self))
        say = lambda value: ":".join(f"{x:g}" for x in value) if isinstance(value, tuple) else f"{value:g}"  # noqa: E731
        return ",".join(f"{name}={say(value)}" for name, value in said if value is not None)

    def takes(self, recent: Sequence[float], mean: float) -> bool:
        """Whether a segment of this mean NLL is learned from, behind segments of ``recent`` means. One that is no number is left to the update,
        which skips it and says so."""
        if len(recent) < WARMUP or not math.isfinite(mean):
            return True
        if self.below is not None and mean < _quantile(sorted(recent), self.below):
            return False
        return self.above is None or mean <= fmean(recent) + self.above * stdev(recent)


def remembered(recent: Sequence[float], mean: float) -> list[float]:
    """The recent ones with one more."""
    return [*recent, mean][-WINDOW:] if math.isfinite(mean) else list(recent)


def bounds(tokens: tuple[float, float], count: int) -> tuple[int, int]:
    """Which of ``count`` NLLs in order are the smallest and the largest that count, from 0."""
    low, high = tokens
    return math.floor(low * (count - 1)), math.ceil(high * (count - 1))


def as_selection(selection) -> Selection | None:
    """A ``Selection`` or None, of one, its ``word``, or None."""
    if selection is None or isinstance(selection, Selection):
        return selection
    if not isinstance(selection, str):
        raise wrong("learn_from", selection, EXPECTED)
    kinds: dict[str, Callable[[str], Any]] = {"below": float, "above": float, "tokens": _pair}
    given = words_of(selection, kinds)
    if given is None:
        raise wrong("learn_from", selection, f"NAME=VALUE,... with each NAME once, of {', '.join(kinds)}; tokens=LOW:HIGH")
    try:
        return Selection(**given)
    except ValueError as error:
        raise ValueError(f"learn_from={selection!r}: {error}") from None


def _pair(word: str) -> tuple[float, float]:
    low, high = map(float, word.split(":"))
    return low, high


def _quantiles(given) -> tuple[float, float]:
    expected = "two quantiles (low, high), 0 <= low < high <= 1, or None"
    try:
        low, high = (float(number("tokens", value, expected, lambda x: 0 <= x <= 1)) for value in sequence("tokens", given, expected))
    except ValueError:
        raise wrong("tokens", given, expected) from None
    if not low < high:
        raise wrong("tokens", given, expected)
    return low, high


def _quantile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    i = math.floor(place)
    return ordered[i] + (place - i) * (ordered[min(i + 1, len(ordered) - 1)] - ordered[i])
