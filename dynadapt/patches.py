"""Updates of bf16 weights as patches. This is the public name of `dynadapt.interop.patches` and `dynadapt.interop.patch_sender`."""

from dynadapt.interop.patch_sender import PatchSender
from dynadapt.interop.patches import Patch, PatchError, apply_patch, read_patch, write_patch

__all__ = ["Patch", "PatchError", "PatchSender", "apply_patch", "read_patch", "write_patch"]
