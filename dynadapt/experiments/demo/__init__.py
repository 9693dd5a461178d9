"""The main job on a text that needs no download, within minutes on any machine: what learns, what remembers, what each gains and costs."""

from dynadapt.common.lazy import lazily

from .variants import SEGMENT, TOKENS, VARIANTS

__all__ = ["SEGMENT", "TOKENS", "VARIANTS", "run_demo"]
__getattr__ = lazily(__name__, {"run_demo": "run"})  # with rich; the command's options need none
