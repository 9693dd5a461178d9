"""Settings that each stream has of its own: lists of LoRA and of optimizers, checked, and which streams learn in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dynadapt.adapt.methods import LoRA
from dynadapt.adapt.optimizers import Adam
from dynadapt.adapt.targets import may_adapt_around
from dynadapt.common.checks import shown, wrong


@dataclass(frozen=True)
class Way:
    """How some streams learn: what, and by which rule. Of ``optimizer`` the rate is each stream's own."""

    adapt: Any
    optimizer: Any
    streams: tuple[int, ...]


def one_or_each(name: str, given, one: Callable) -> Any:
    """``one`` of what all streams have, or a tuple of ``one`` of each stream's."""
    if not isinstance(given, (list, tuple)):
        return one(given)
    if not given:
        raise wrong(name, given, "one for all streams, or a list of one a stream")
    values = []
    for stream, value in enumerate(given):
        try:
            values.append(one(value))
        except ValueError as error:
            raise ValueError(f"{name}={shown(given)}, of stream {stream}: {error}") from None
    return tuple(values)


def each_stream(adapt, optimizer, streams: int, shared: bool) -> tuple[Any, Any]:
    """Both, checked against each other and the streams; one for all where a tuple's entries are equal.

    Raises:
        ValueError: naming what is not one a stream, or not LoRA.
    """
    for name, given in (("adapt", adapt), ("optimizer", optimizer)):
        if not isinstance(given, tuple):
            continue
        if len(given) != streams:
            raise ValueError(f"{name} has {len(given)} entries with streams={streams}; expected one a stream, or one for all")
        if shared:
            raise ValueError(f"{name} of each stream with shared=True: one set of weights serves all rows; expected one for all")
        learns = adapt if isinstance(adapt, tuple) else (adapt,)
        for i, one in enumerate(learns):
            where = f"adapt[{i}]={one!r}" if learns is adapt else f"optimizer of each stream with adapt={one!r}"
            if not isinstance(one, LoRA):
                raise ValueError(f"{where}: streams that differ have adapters; expected LoRA(...)")
            if one.also or one.dora:
                raise ValueError(f"{where}: streams that differ have adapters alone; leave also and dora out")
            if around := may_adapt_around(one):
                raise ValueError(
                    f"{where}: streams that differ have adapters in the layers alone; leave {' and '.join(around)} out of targets"
                )
    if isinstance(optimizer, tuple):
        optimizer = tuple(Adam() if one is None else one for one in optimizer)
    return _alike(adapt), _alike(optimizer)


def _alike(given):
    return given[0] if isinstance(given, tuple) and all(one == given[0] for one in given) else given


def of(given, stream: int):
    """One stream's."""
    return given[stream] if isinstance(given, tuple) else given


def ways(adapt, optimizer, sets: int) -> list[Way]:
    """The ways to learn that ``sets`` of weights have, in the order of their first stream."""
    found: dict[tuple, list[int]] = {}
    for stream in range(sets):
        found.setdefault((of(adapt, stream), of(optimizer, stream).rule()), []).append(stream)
    return [Way(learns, of(optimizer, streams[0]), tuple(streams)) for (learns, _), streams in found.items()]


def said(given) -> str:
    """What all streams have, or which have what."""
    if not isinstance(given, tuple):
        return repr(given)
    found: dict[Any, list[int]] = {}
    for stream, one in enumerate(given):
        found.setdefault(one, []).append(stream)
    return " | ".join(f"{one!r} of {_streams(streams)}" for one, streams in found.items())


def _streams(streams: Sequence[int]) -> str:
    return f"stream{'s' if len(streams) > 1 else ''} {', '.join(map(str, streams))}"
