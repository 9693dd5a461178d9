"""The ops on numpy arrays. This is the public name of `dynadapt.interop.numpy`."""

from dynadapt.interop.numpy import *  # noqa: F403
from dynadapt.interop.numpy import __all__ as __all__
from dynadapt.interop.numpy import __getattr__ as __getattr__
