"""Settings of experiments in in-context learning: checked where they come in, and named with their value when they are wrong."""

from __future__ import annotations

import math

from dynadapt.common.errors import ConfigError


class IclError(ConfigError):
    """A function class, a mixture, an input distribution or a baseline that can't be had; the message names the value."""


def check_number(what: str, value: float, least: float = -math.inf, above: bool = False) -> float:
    """The value as a float; IclError unless it is finite and at least (or above) `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise IclError(f"{what} {value!r}: give a finite number")
    if value < least or (above and value == least):
        raise IclError(f"{what} {value!r}: give a number {'above' if above else 'of at least'} {least:g}")
    return float(value)


def check_count(what: str, value: int, least: int = 1, most: int | None = None, why: str = "") -> int:
    """The value, a whole number from `least` to `most`; IclError otherwise, with `why` where there is a most."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise IclError(f"{what} {value!r}: give a whole number")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}{why}"
        raise IclError(f"{what} {value}: give {limits}")
    return value


def check_range(what: str, values: tuple[float, float], least: float = -math.inf) -> tuple[float, float]:
    """(low, high) with low <= high; IclError otherwise."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise IclError(f"{what} {values!r}: give (low, high)")
    low, high = (check_number(what, value, least) for value in values)
    if low > high:
        raise IclError(f"{what} {values!r}: low is above high")
    return low, high
