"""What a command has to say of itself that is no error."""

from __future__ import annotations

import warnings


class RunNote(UserWarning):
    """Something about a run, or about what it reads, that its user should know."""


def note(text: str, stacklevel: int = 3) -> None:
    warnings.warn(text, RunNote, stacklevel=stacklevel)
