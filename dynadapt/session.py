"""A live transformers model that adapts in place. This is the public name of `dynadapt.interop.session`."""

from dynadapt.interop.session import *  # noqa: F403
from dynadapt.interop.session import __all__ as __all__
