"""Values out of files: checked, and named when they are wrong."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from dynadapt.model.errors import ModelError


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


def read_size(raw: Mapping, *keys: str) -> int:
    """The first of `keys` that is there, a whole number above 0."""
    for key in keys:
        if raw.get(key) is not None:
            return check_size(key, raw[key])
    raise ModelError(f"{keys[0]} is missing from the config")


def read_flag(raw: Mapping, key: str, default: bool) -> bool:
    """True or false; `default` if absent or null."""
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{key} = {value!r} must be true or false")
    return default if value is None else value


def read_token(raw: Mapping, key: str) -> int | None:
    """A token id, the first of a list of them, or None."""
    value = raw.get(key)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ModelError(f"{key} = {value!r} must be a token id, a list of them, or null")
    return value


def read_json(path: Path):
    """The content of a JSON file; ModelError naming the file if it cannot be read or parsed."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({str(error)[:200]})") from error
