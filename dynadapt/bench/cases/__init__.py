"""One case an op: its arguments for given sizes, dtype and seed, its outputs, its error bound, its bytes and FLOPs.

A family of ops is a file of functions, one an op: ``norm.norm_forward(Draw(dtype, seed), n=63, h=17)`` -> OpCase. ``OPS`` has every
op of the step at a model's sizes.
"""

from .base import Draw, Op, OpCase
from .calls import agrees, check, materialise, run, written
from .model import OPS, RANK, Sizes

__all__ = ["OPS", "RANK", "Draw", "Op", "OpCase", "Sizes", "agrees", "check", "materialise", "run", "written"]
