"""Packages whose parts are imported when they are asked for: torch, matplotlib and scipy take seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from .collection import uncollected


def lazily(package: str, homes: Mapping[str, str], modules: Collection[str] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a package: {name: the submodule that has it}, and submodules that need no import of their own."""

    def get(name: str):
        if name in homes:
            return getattr(_imported(f"{package}.{homes[name]}"), name)
        if name in modules:
            return _imported(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def _imported(module: str) -> ModuleType:
    if module in sys.modules:
        return import_module(module)  # waits for a thread that is still at it
    with uncollected():
        return import_module(module)
