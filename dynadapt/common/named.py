"""Things that are asked for by name, with settings: mixers, function classes, distributions, baselines."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping


def check_named(what: str, table: Mapping, name: str, settings: Iterable[str], error: type[Exception], also: tuple[str, ...] = ()) -> None:
    """`error` where the table has no such name, or a setting does not exist or is missing: its keyword-only parameters, `also` left out."""
    if name not in table:
        raise error(f"{what} {name!r}: give one of {', '.join(table)}")
    parameters = inspect.signature(table[name]).parameters.items()
    accepted = {key: parameter for key, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY and key not in also}
    for key in settings:
        if key not in accepted:
            raise error(f"{what} {name!r}: unknown setting {key!r}; it has {', '.join(accepted) or 'none'}")
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in settings:
            raise error(f"{what} {name!r}: setting {key!r} is missing")
