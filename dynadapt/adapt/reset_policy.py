"""In which words and numbers the policy of resets is given; resets.py has what it means. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dynadapt.common.checks import integer, is_integer, keep, number, wrong

ALARM = 10.0  # nats


@dataclass(frozen=True)
class Alarm:
    """``reset="auto"`` of a guarded stream in its parts: when there is an alarm, and what follows from it.

    Args:
        nats: by how many nats a stretch of segments was scored worse than by the prior; more raises an alarm.
        back: what share of the way to the prior the weights go, parameter by parameter; the optimizer's state starts anew. Below 1 an alarm
            at most ``recover`` segments behind the last, or of a segment whose score is no number, leads all the way.
        ring: of how many copies of what the stream had learned the best is gone back to, where it scores the segment that raised the alarm
            better than the prior does; 0: of none. Their forward passes count in the ledger.
        every: segments of the stream from one copy to the next; the oldest gives way.
        slower: factor on the learning rate behind an alarm.
        recover: segments without an alarm behind which the rate is what it was.
    """

    nats: float = ALARM
    back: float = 1.0
    ring: int = 0
    every: int = 8
    slower: float = 1.0
    recover: int = 16

    def __post_init__(self):
        share = lambda x: 0 < x <= 1  # noqa: E731
        keep(
            self,
            nats=number("nats", self.nats, "a number of nats > 0", lambda x: x > 0),
            back=number("back", self.back, "a share, 0 < back <= 1 (1: all the way to the prior)", share),
            ring=integer("ring", self.ring, 0, 64),
            every=integer("every", self.every),
            slower=number("slower", self.slower, "a factor, 0 < slower <= 1 (1: the rate stays)", share),
            recover=integer("recover", self.recover),
        )
        if self.ring and self.back != 1:
            raise ValueError(f"back={self.back!r} with ring={self.ring}: the best of the ring is gone back to whole; use back=1, or ring=0")

    @property
    def remembers(self) -> bool:
        """Whether what an alarm does depends on when the last one was."""
        return self.back < 1 or self.slower < 1

    @property
    def word(self) -> str:
        """As the command line has it, with what is not the default."""
        said = ",".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"auto:{said}" if said else "auto"


def check_reset(reset) -> str | int | Alarm:
    """``reset``; refuses anything but never, document, auto, an ``Alarm`` or its ``word``, or a positive number of tokens."""
    if isinstance(reset, Alarm) or isinstance(reset, str) and reset in ("never", "document", "auto"):
        return reset
    if is_integer(reset) and reset > 0:
        return int(reset)
    if isinstance(reset, str) and reset.startswith("auto:"):
        return _alarm_of(reset)
    raise wrong(
        "reset", reset, "never, document, auto, Alarm(...) or auto:back=0.5,slower=0.5 (its fields), or a positive number of tokens"
    )


def words_of(words: str, kinds: Mapping[str, Callable[[str], Any]]) -> dict[str, Any] | None:
    """{name: value} of "NAME=VALUE,...", each value by its name's kind; None where a name is unknown or comes twice, or a value is none."""
    given: dict[str, Any] = {}
    for part in words.split(","):
        name, _, value = part.partition("=")
        try:
            if name in given:
                return None
            given[name] = kinds[name](value)
        except (KeyError, ValueError):
            return None
    return given


def _alarm_of(word: str) -> Alarm:
    usual = Alarm()
    kinds = {f.name: type(getattr(usual, f.name)) for f in fields(Alarm)}
    given = words_of(word.removeprefix("auto:"), kinds)
    if given is None:
        raise wrong("reset", word, f"auto:NAME=NUMBER,... with each NAME once, of {', '.join(kinds)}")
    try:
        return Alarm(**given)
    except ValueError as error:
        raise ValueError(f"reset={word!r}: {error}") from None
