"""JSON out of files that anybody may have written, by the rules of the native reader (csrc/engine/json.cpp): what one refuses,
the other refuses.

Names that occur twice in an object, NaN and Infinity, numbers beyond float64, half surrogate pairs and bytes that are not UTF-8
are no valid document; its size, its depth and the number of its values are bounded before they cost memory.
"""

from __future__ import annotations

import json
from pathlib import Path

from .errors import ModelError
from .regular_file import opened

MAX_CONFIG_BYTES = 4 << 20  # many times the largest that is in use
MAX_INDEX_BYTES = 64 << 20
MAX_TOKENIZER_BYTES = 256 << 20  # vocabularies of a quarter of a million tokens take 35 MB
MAX_VALUES = 1 << 17  # of a configuration
MAX_TABLE_VALUES = 1 << 20  # of a table of tensors: a header, an index
MAX_TOKENIZER_VALUES = 1 << 24
MAX_DEPTH = 64


def read_json(path: Path, most: int = MAX_CONFIG_BYTES, values: int = MAX_VALUES):
    """The content of a JSON file of at most ``most`` bytes and ``values`` values.

    Raises:
        ModelError: naming the file, if it cannot be read or parsed.
    """
    with opened(path) as file:
        size = file.seek(0, 2)
        if size > most:
            raise ModelError(f"{path}: has {size} bytes, accepted are up to {most}")
        file.seek(0)
        content = file.read(most)
    try:
        return parse_json(content, values)
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({str(error)[:200]})") from error


def parse_json(content: bytes, values: int = MAX_VALUES):
    """The value that ``content`` holds. ValueError for what is not valid."""
    text = content.decode("utf-8")
    if text.count(",") + text.count("[") + text.count("{") > 4 * values:  # before they are made; commas of strings count too
        raise ValueError("too many values")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(value, values)
    return value


def _object(pairs):
    out = dict(pairs)
    if len(out) < len(pairs):
        seen = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {json.dumps(name)[:80]} occurs twice in an object")
    return out


def _no_number(word):
    raise ValueError(f"{word} is no JSON number")


def _float(text):
    value = float(text)
    if abs(value) == float("inf") or (value == 0 and text.lower().partition("e")[0].strip("-0.")):
        raise ValueError(f"a number out of range: {text[:40]}")
    return value


def _int(text):
    if abs(float(text)) == float("inf"):
        raise ValueError(f"a number out of range: {text[:40]}")
    return int(text)


def _check(value, most):
    """Bounds on number and depth, and strings that are text."""
    level, depth, count = [value], 0, 0
    while level:
        count += len(level)
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if count > most:
            raise ValueError("too many values")
        below = []
        for item in level:
            if isinstance(item, dict):
                for name in item:
                    _check_text(name)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                _check_text(item)
        level, depth = below, depth + 1


def _check_text(text):
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair") from None
