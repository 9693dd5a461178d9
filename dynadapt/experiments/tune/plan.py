"""What is tried, on how much text, within how many seconds: pure functions of measured costs.

Successive halving: every candidate that learns sees a few windows, the better third of them sees twice as many, and so on; the
static ones are what they are compared with and see all of them. The last two are chosen between on the most windows; the one
that is left is judged on other windows, for which a share of the time is kept back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType

from dynadapt.experiments.config import LEARNING_RATES, EvalConfig
from dynadapt.experiments.guarded import rates_of

MEMORIES = (0, 512, 1536)
FACTORS = (1 / 3, 1.0, 3.0)  # of the learning rate that is the default for what learns
KEEP = 3  # one of so many goes on to the next round
LEAST_FIRST = 2  # windows of the first round, at least
MOST_CHOOSING = 24  # windows of the last round, at most
MOST_JUDGING = 64
JUDGING_SHARE = 0.45  # of the time that is left once everything is loaded and timed
LONG = 512  # tokens: a shorter segment makes windows of more segments
NONE: Mapping[str, float] = MappingProxyType({})
APART = 0.5  # of the text may be set apart, at most
SIZES = ((8, 8), (6, 8), (4, 8), (3, 6), (2, 6))  # segments a window and the fewest windows to judge on, the best first


@dataclass(frozen=True)
class Candidate:
    """What learns, what remembers and how fast; lr is None where nothing learns."""

    adapt: str
    memory: int
    lr: float | None = None

    @property
    def label(self) -> str:
        learns = {"none": "static", "lora": "LoRA", "rows": "rows", "full": "full"}[self.adapt]
        return learns + (f", memory {self.memory:,}" if self.memory else "") + ("" if self.lr is None else f", lr {self.lr:g}")

    def configure(self, config: EvalConfig) -> EvalConfig:
        guard = None if self.adapt == "none" else config.guard  # which has nothing to guard there
        return config.with_(adapt=self.adapt, memory=self.memory, lr=self.lr, guard=guard, rates=None)


@dataclass(frozen=True)
class Cost:
    """Seconds: to make an engine, and for each segment."""

    setup: float
    segment: float

    def of(self, windows: int, segments: int) -> float:
        return self.setup + windows * segments * self.segment


@dataclass(frozen=True)
class Round:
    windows: int
    learners: int  # that learn and take part


@dataclass(frozen=True)
class Plan:
    candidates: tuple[Candidate, ...]
    segments: int  # of a window
    rounds: tuple[Round, ...]
    judging: int  # windows, at most: time decides
    left_out: str  # "" or what the time or the text left out

    @property
    def windows(self) -> int:
        """Set apart for choosing."""
        return self.rounds[-1].windows


def rates(config: EvalConfig, adapt: str, family: Mapping[str, float] = NONE) -> tuple[float, ...]:
    """--rates in ascending order where these are given for what learns, else three around the default, or around --lr. `family`: the defaults of
    the model's, by what learns, where it wants others than most."""
    if config.rates and config.adapt == adapt:
        return tuple(sorted(rates_of(config.rates)))
    middle = config.lr if config.lr and config.adapt == adapt else family.get(adapt, LEARNING_RATES[adapt][config.optimizer])
    return tuple(middle if factor == 1 else float(f"{middle * factor:.2g}") for factor in FACTORS)


def middle_of(some: tuple[float, ...]) -> tuple[float, ...]:
    """The one in the middle, by itself: of three around the default that."""
    return some[len(some) // 2 :][:1]


def grids(kinds, memories, config: EvalConfig, family: Mapping[str, float] = NONE) -> list[tuple[tuple[Candidate, ...], str]]:
    """(candidates, what they leave out) from the whole grid to the least one that still answers."""
    learning, usual = [kind for kind in kinds if kind != "none"], "the middle one" if config.rates else "the default"
    middle = 512 if 512 in memories else memories[0]
    static = tuple(Candidate("none", memory) for memory in memories)
    with_middle = f"with memory {middle:,}" if middle else "without memory"

    def grid(some_kinds, some_memories, rates_of):
        return tuple(Candidate(kind, memory, rate) for kind in some_kinds for memory in some_memories for rate in rates_of(kind, memory))

    every, default = (lambda kind, memory: rates(config, kind, family)), (lambda kind, memory: middle_of(rates(config, kind, family)))
    found = [(static + grid(learning, memories, every), "")]
    if len(memories) > 1:
        found += [
            (
                static + grid(learning, memories, lambda kind, memory: (every if memory == middle else default)(kind, memory)),
                f"other rates than {usual}, except {with_middle}",
            ),
            (static + grid(learning, memories, default), f"other rates than {usual}"),
        ]
    if len(memories) > 1 and len(learning) > 1:  # the cheapest that learns with every memory, so that what it is held against it has too
        found.append(
            (
                static + grid(learning[:1], memories, default) + grid(learning[1:], [middle], default),
                f"other rates than {usual}; {' and '.join(learning[1:])} other than {with_middle}",
            )
        )
    found.append(
        (
            static + grid(learning, [middle], default),
            f"other rates than {usual}" + (f"; learning other than {with_middle}" if len(memories) > 1 else ""),
        )
    )
    if len(learning) > 1:
        found.append(
            (
                (Candidate("none", middle),) + grid(learning[:1], [middle], default),
                f"{', '.join(learning[1:])}; other rates than {usual}"
                + (f"; anything other than {with_middle}" if len(memories) > 1 else ""),
            )
        )
    return found


def sizes_of(segment: int) -> list[tuple[tuple[int, int], ...]]:
    """Groups of (segments a window, the fewest windows to judge on), the best first: windows are of thousands of tokens, shorter ones where the time
    or the text allows no others."""
    scale = max(1, LONG // segment)
    scaled = tuple((segments * scale, judged) for segments, judged in SIZES)
    return [scaled[:3], scaled[3:]] + ([SIZES[:3], SIZES[3:]] if scale > 1 else [])


def filled(memories, segments: int, segment: int) -> tuple[int, ...]:
    """Memory sizes that a window fills before its last segment, so that they can be told apart."""
    return tuple(memory for memory in memories if memory <= (segments - 1) * segment)


def make_plan(
    kinds,
    memories,
    config: EvalConfig,
    costs: dict[Candidate, Cost],
    seconds: float,
    text_segments: int,
    family: Mapping[str, float] = NONE,
) -> Plan | None:
    """The richest plan that fits into the time and the text; None where none does.

    memories: those that the model allows. text_segments: segments that the whole text has, of which APART may be used. family: as of `rates`.
    """
    for sizes in sizes_of(config.segment):
        found = [(segments, judged, grids(kinds, filled(memories, segments, config.segment), config, family)) for segments, judged in sizes]
        for level in range(max(len(levels) for _, _, levels in found)):
            for segments, judged, levels in found:
                plan = _fit(*levels[level], costs, seconds, text_segments, segments, judged) if level < len(levels) else None
                if plan:
                    short = [f"{memory:,}" for memory in memories if memory not in filled(memories, segments, config.segment)]
                    more = [f"memory {' and '.join(short)}, which windows of {segments * config.segment:,} tokens can't fill"] * bool(short)
                    return replace(plan, left_out="; ".join(filter(None, [plan.left_out, *more])))
    return None


def _fit(candidates, left_out, costs, seconds, text_segments, segments, least_judged) -> Plan | None:
    available = int(text_segments * APART) // segments
    most_judged = min(MOST_JUDGING, available - LEAST_FIRST)  # what the text has windows for needs no more time than that
    share = min(JUDGING_SHARE * seconds, judging_seconds(candidates, costs, max(most_judged, 0), segments))
    judged = max(judging_seconds(candidates, costs, least_judged, segments), share)
    rounds = schedule(
        candidates, costs, seconds - judged, segments, min(MOST_CHOOSING, available - least_judged, max(LEAST_FIRST, available // 2))
    )
    if rounds is None:
        return None
    return Plan(candidates, segments, rounds, min(MOST_JUDGING, available - rounds[-1].windows), left_out)


def judging_seconds(candidates, costs: dict[Candidate, Cost], windows: int, segments: int) -> float:
    """Of the dearest one that learns beside the dearest static one, alone."""
    dearest = [
        max((costs[each].of(windows, segments) for each in candidates if (each.adapt == "none") == static), default=0.0)
        for static in (True, False)
    ]
    return sum(dearest)


def schedule(candidates, costs: dict[Candidate, Cost], seconds: float, segments: int, most: int) -> tuple[Round, ...] | None:
    """Rounds of doubling windows and ever fewer candidates that take at most `seconds`, whichever of them go on; None: not even two windows.

    The last round chooses between two, or is the only one where there are two at most.
    """
    learners = sorted((each for each in candidates if each.adapt != "none"), key=lambda each: -costs[each].of(1, segments))
    statics = [each for each in candidates if each.adapt == "none"]
    counts = [len(learners)]
    while counts[-1] > 2:
        counts.append(max(2, ceil(counts[-1] / KEEP)))

    def rounds(first: int) -> tuple[Round, ...]:
        return tuple(Round(min(most, first * 2**number), count) for number, count in enumerate(counts))

    def price(some: tuple[Round, ...]) -> float:
        learning = sum(sum(costs[each].of(each_round.windows, segments) for each in learners[: each_round.learners]) for each_round in some)
        return learning + sum(costs[each].of(some[-1].windows, segments) for each in statics)

    best = None
    for first in range(LEAST_FIRST, most + 1):
        found = rounds(first)
        if price(found) > seconds:
            break
        best = found
    return best


def least_seconds(kinds, memories, config: EvalConfig, costs: dict[Candidate, Cost], family: Mapping[str, float] = NONE) -> float:
    """What the least plan takes, in seconds."""
    segments, judged = SIZES[-1]
    candidates = grids(kinds, filled(memories, segments, config.segment), config, family)[-1][0]
    learning = sum(costs[each].of(LEAST_FIRST, segments) for each in candidates)
    return max(learning + judging_seconds(candidates, costs, judged, segments), learning / (1 - JUDGING_SHARE)) + 0.01


def least_segments() -> int:
    """Segments that a text needs."""
    segments, judged = SIZES[-1]
    return ceil((LEAST_FIRST + judged) * segments / APART)
