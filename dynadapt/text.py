"""Texts as streams of tokens. This is the public name of `dynadapt.runs.text`."""

from dynadapt.runs.text import *  # noqa: F403
from dynadapt.runs.text import __all__ as __all__
