"""Forms of a call that have gone, and work for one minor version more (CONTRIBUTING.md, "What stays")."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

UNTIL = "0.3"  # what 0.1 had works in 0.2

Made = TypeVar("Made", bound=Callable)


def warn(form: str, instead: str, stacklevel: int = 2) -> None:
    """Says to who called the caller's caller that a form goes, and what to write instead."""
    warnings.warn(f"{form} works until version {UNTIL}: {instead}", DeprecationWarning, stacklevel=stacklevel + 1)


def positional_before(made: Made, but: tuple[str, ...] = ()) -> Made:
    """A method, or a class for its ``__init__``, whose keyword-only arguments could be given by position before, in their order;
    all ``but`` those that are newer."""
    method: Any = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    kinds = [(p.name, p.kind) for p in inspect.signature(method).parameters.values()]
    most, names = (
        sum(kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for _, kind in kinds),
        [name for name, kind in kinds if kind.name == "KEYWORD_ONLY" and name not in but],
    )

    @wraps(method)
    def call(*args, **given):
        behind = args[most:]
        if 0 < len(behind) <= len(names):
            meant = ", ".join(f"{name}={value!r}" for name, value in zip(names, behind))
            warn(f"{len(behind)} of {type(args[0]).__name__}'s arguments by position", f"give them by name: {meant}")
            return method(*args[:most], **dict(zip(names, behind)), **given)
        return method(*args, **given)

    if not isinstance(made, type):
        return call  # type: ignore[return-value]
    made.__init__ = call  # type: ignore[misc]
    return made
