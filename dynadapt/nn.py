"""Modules for torch models. This is the public name of `dynadapt.interop.nn`."""

from dynadapt.interop.nn import *  # noqa: F403
from dynadapt.interop.nn import __all__ as __all__
