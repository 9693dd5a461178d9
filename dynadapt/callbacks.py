"""A transformers `TrainerCallback` that scores held-out text. This is the public name of `dynadapt.interop.callbacks`."""

from dynadapt.interop.callbacks import *  # noqa: F403
from dynadapt.interop.callbacks import __all__ as __all__
