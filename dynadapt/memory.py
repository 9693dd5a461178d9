"""What an engine remembers of a stream. This is the public name of `dynadapt.engine.memory`."""

from dynadapt.engine.memory import *  # noqa: F403
from dynadapt.engine.memory import __all__ as __all__
