"""Every op as a torch operator. This is the public name of `dynadapt.interop.torch_ops`."""

from dynadapt.interop.torch_ops import *  # noqa: F403
from dynadapt.interop.torch_ops import __all__ as __all__
