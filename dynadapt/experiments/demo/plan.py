"""How much of the text, and which variants, fit into the time there is. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from .variants import BY_WEIGHT, CORE, COST, TOKENS

MARGIN = 0.8  # of the time that is planned with: a segment timed once says only about what hundreds will take
COMFORT = 12  # segments below which variants are left out rather than text
LEAST = 4  # fewer segments show neither learning nor memory


@dataclass(frozen=True)
class Pace:
    """Seconds, measured here: of a static and of a LoRA segment, from a cell's start to its first segment, and for the end."""

    static: float
    lora: float
    start: float

    @property
    def closing(self) -> float:
        return 2 + 2 * self.start  # table, picture and page: loading what draws them is most of it

    def cell(self, name: str, segments: float) -> float:
        return self.start + segments * COST[name] * (self.static if name.startswith("static") else self.lora)


@dataclass(frozen=True)
class Plan:
    names: tuple[str, ...]
    tokens: int
    seconds: float | None = None  # that it is expected to take, from where it was made


def whole_plan(tokens: int) -> Plan:
    return Plan(BY_WEIGHT, tokens)


def make_plan(pace: Pace, seconds: float, segment: int, most: int = TOKENS) -> Plan:
    """The plan that fits `seconds`, of at most `most` tokens: all variants on as much text as fits, where that is 12 segments or
    more; fewer variants where it is not; and the four that matter most on at least four segments, however long that takes."""
    room, limit = MARGIN * seconds - pace.closing, -(-(most - 1) // segment)
    for count in range(len(BY_WEIGHT), CORE - 1, -1):
        names = BY_WEIGHT[:count]
        fixed, each = sum(pace.cell(name, 0) for name in names), sum(pace.cell(name, 1) - pace.start for name in names)
        fits = int((room - fixed) / each)
        if fits >= min(COMFORT, limit) or count == CORE:
            break
    segments = max(min(fits, limit), min(LEAST, limit))
    if segments > 8:
        segments -= segments % 4  # windows four times as long end where the others do
    return Plan(names, min(most, segments * segment + 1), pace.closing + sum(pace.cell(name, segments) for name in names))


def fits(pace: Pace, name: str, segments: float, left: float, slower: float) -> bool:
    """Whether a cell can still end in `left` seconds, where those before took `slower` times what was expected."""
    return slower * pace.cell(name, segments) + pace.closing <= left
