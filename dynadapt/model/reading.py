"""Values out of files: checked, and named when they are wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import ModelError

# What a rotary base and the divisors of its frequencies may be: below, float32 angles would no longer tell positions apart.
THETA_RANGE, FACTOR_RANGE, BAND_RANGE = (1.0, 1e15), (0.01, 1e9), (1e-6, 1e9)
SCALE_RANGE = (1e-6, 1e6)


def check_choice(name: str, value, choices) -> None:
    """Raise ModelError naming `value` unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ModelError(f"{name} = {value!r} is not supported; accepted: {', '.join(choices)}")


def check_size(name: str, value, high: int = 2**31 - 1) -> int:
    """`value` if it is a whole number in 1..high, else a ModelError naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise ModelError(f"{name} = {value!r} must be a whole number in 1..{high}")
    return value


def check_number(name: str, value, low: float, high: float) -> float:
    """`value` as a float if it is a finite number in low..high, else a ModelError naming it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise ModelError(f"{name} = {value!r} must be a number in {low:g}..{high:g}")
    return float(value)


def read_size(raw: Mapping, key: str, absent: int | None = None, high: int = 2**31 - 1) -> int:
    """A whole number in 1..high; `absent`, if given, where there is no such key."""
    if key not in raw and absent is None:
        raise ModelError(f"{key} is missing from the config")
    return check_size(key, raw.get(key, absent), high)


def read_flag(raw: Mapping, key: str, absent: bool) -> bool:
    """True or false; `absent` where there is no such key."""
    value = raw.get(key, absent)
    if not isinstance(value, bool):
        raise ModelError(f"{key} = {value!r} must be true or false")
    return value


def read_token(raw: Mapping, key: str, absent: int | None) -> int | None:
    """A token id, the first of a list of them, or None; `absent` where there is no such key."""
    value = raw.get(key, absent)
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, bool) or not isinstance(item, int):
            raise ModelError(f"{key} = {value!r} must be a token id, a list of them, or null")
    if isinstance(value, list):
        return value[0] if value else None
    return value
