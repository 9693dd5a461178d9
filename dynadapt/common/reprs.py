"""What objects say of themselves: short, at no cost, and never an error, whatever state they are in."""

from __future__ import annotations

from functools import wraps


def safe(method):
    """A ``__repr__`` or ``_repr_html_`` that says the class alone where the object is half made, damaged or closed."""

    @wraps(method)
    def call(self) -> str:
        try:
            return method(self)
        except Exception:
            return f"<{type(self).__name__}, not whole>"

    return call


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
