"""What is said of a setting that can't be used, and of a word that was probably meant to be another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that can't be used; the message names it, its value and what is accepted."""


def meant(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", or "" where nothing else is near."""
    near = difflib.get_close_matches(word, [other for other in known if other != word], n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
