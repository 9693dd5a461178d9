"""Arguments: checked where they come in, and named with their value and what is accepted when they are wrong.

Every check returns the value as plain Python (numpy's numbers become Python's), and raises ValueError otherwise. True and False
are no numbers. Numbers reach kernels as float32, so what overflows or vanishes there is refused here.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LARGEST = 2**31 - 1  # of the int32 that counts rows, slots and positions


def _is_tensor(value) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it; the command line starts without
    return torch is not None and isinstance(value, torch.Tensor)


def shown(value) -> str:
    """A value as an error says it: tensors and arrays by what they are, the rest by repr, cut short where it is long."""
    if _is_tensor(value) and value.numel() != 1:
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, np.ndarray) and value.size != 1:
        return f"an array {value.shape} of {value.dtype}"
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 120 else text[:100] + "..."


def wrong(name: str, value, expected: str) -> ValueError:
    return ValueError(f"{name}={shown(value)}: expected {expected}")


def is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def integer(name: str, value, least: int = 1, most: int = LARGEST, expected: str | None = None) -> int:
    """A whole number in least..most."""
    if not is_integer(value) or not least <= value <= most:
        bounded = most < LARGEST or is_integer(value) and value > most
        raise wrong(name, value, expected or (f"an integer in {least}..{most}" if bounded else f"an integer of at least {least}"))
    return int(value)


def number(name: str, value, expected: str, accepts=lambda x: x >= 0) -> float:
    """A finite number that ``accepts`` takes, and still takes as float32."""
    real = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not real or not math.isfinite(value) or not accepts(value):
        raise wrong(name, value, expected)
    single = ctypes.c_float(value).value
    if not math.isfinite(single) or not accepts(single):
        raise wrong(name, value, f"{expected} that float32 holds (here it becomes {single:g})")
    return value if type(value) is int and abs(value) < 2**63 else float(value)  # torch takes no larger int


def flag(name: str, value) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise wrong(name, value, "True or False")
    return bool(value)


def choice(name: str, value, accepted, hint: str = "") -> str:
    """One of the ``accepted`` words."""
    if not isinstance(value, str) or value not in accepted:
        raise wrong(name, value, f"one of {', '.join(accepted)}{hint}")
    return value


def path(name: str, value) -> Path:
    """A directory or file name; whether it is there is for whoever reads it."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or isinstance(os.fspath(value), bytes):
        raise wrong(name, value, "a path, as a string or a pathlib.Path")
    return Path(value)


def sequence(name: str, values, expected: str) -> list:
    """The elements of a list, tuple, range, one-dimensional tensor or array, or other iterable in order."""
    if _is_tensor(values) or isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise wrong(name, values, expected)
        return values.tolist()
    if isinstance(values, (str, bytes, dict, set, frozenset)):
        raise wrong(name, values, expected)
    try:
        return list(values)
    except TypeError:
        raise wrong(name, values, expected) from None


def token_ids(name: str, tokens) -> torch.Tensor:
    """Token ids as an int64 tensor, wherever they lie; of tensors, arrays and nested lists of whole numbers.

    Raises:
        ValueError: other types: floats, bools, ragged lists, strings.
    """
    import torch

    expected = "token ids: integers, in a tensor, an array or lists of equal length"
    given = tokens
    if not isinstance(tokens, torch.Tensor):
        try:
            tokens = np.array(tokens)  # a copy: what torch.as_tensor shares may be read-only or have negative strides
            if tokens.dtype == object:
                raise wrong(name, given, expected)
            tokens = torch.from_numpy(tokens.astype(np.int64) if tokens.size == 0 else tokens)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise wrong(name, given, expected) from None
    if tokens.dtype == torch.bool or tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.is_quantized:
        dtype = str(tokens.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is of {dtype}: expected {expected}")
    if tokens.layout != torch.strided or tokens.is_meta:
        where = "no data (device meta)" if tokens.is_meta else f"layout {tokens.layout}"
        raise ValueError(f"{name} has {where}: expected {expected}")
    if tokens.numel() == 0:
        raise ValueError(f"{name}: empty (shape {tuple(tokens.shape)}); expected at least 1 token")
    return tokens.detach().to(torch.int64)


def keep(settings, **checked) -> None:
    """Checked values into the fields of a frozen dataclass."""
    for name, value in checked.items():
        object.__setattr__(settings, name, value)
