"""The main job on a text that needs no download, within minutes on any machine: what learns, what remembers, what each gains and costs."""

from .variants import SEGMENT, TOKENS, VARIANTS

__all__ = ["SEGMENT", "TOKENS", "VARIANTS", "run_demo"]


def __getattr__(name: str):
    if name == "run_demo":  # with rich; the command's options need none
        from .run import run_demo

        return run_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
