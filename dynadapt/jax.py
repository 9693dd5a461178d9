"""The CPU kernels as differentiable functions of jax. This is the public name of `dynadapt.interop.jax`."""

from dynadapt.interop.jax import *  # noqa: F403
from dynadapt.interop.jax import __all__ as __all__
