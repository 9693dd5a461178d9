"""What every kernel file uses: the interpreter switch, the dot product, block sizes, scratch memory, launch options."""

from __future__ import annotations

import math
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl

# Triton decides at decoration: with TRITON_INTERPRET=1 kernels run in Python on CPU tensors.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
_UPCAST: tl.constexpr = tl.constexpr(INTERPRET)


def _dependent_launch(asked: str) -> bool:
    """Raises ValueError for another value than 0 and 1, or a GPU before Hopper."""
    if asked not in ("0", "1"):
        raise ValueError(f"DYNADAPT_DEPENDENT_LAUNCH={asked!r}: accepted is 0 or 1")
    on = asked == "1" and not INTERPRET
    if on and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        gpu = torch.cuda.get_device_name()
        raise ValueError(f"DYNADAPT_DEPENDENT_LAUNCH=1: {gpu} has no dependent launches, Hopper and later have; leave it out")
    return on


# Programmatic dependent launch: a kernel's programs may start while the kernel before it ends, and wait inside, in ``wait_for_previous``.
# Off unless the environment asks for it, until a GPU has measured it: the campaign's step stages time it beside the plain step.
DEPENDENT = _dependent_launch(os.environ.get("DYNADAPT_DEPENDENT_LAUNCH", "0"))
_DEPENDENT: tl.constexpr = tl.constexpr(DEPENDENT)

# Options of every launch. Contraction of a * b + c into one rounding is said explicitly because Triton's default changes between versions.
FUSION = {"enable_fp_fusion": True, **({"launch_pdl": True} if DEPENDENT else {})}


@triton.jit
def wait_for_previous():
    """The first line of every kernel, before it reads or writes: all kernels before it have ended when it returns. What follows may start
    at once, as it waits here too."""
    if _DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def dot(a, b, acc):
    """acc + a b in float32. float32 operands are multiplied exactly (no TF32). The interpreter multiplies bfloat16 bit
    patterns as integers, hence the cast there."""
    if _UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def hyperbolic_tangent(x):
    """tanh x of float32: near 0 an odd polynomial (Cephes' coefficients), elsewhere 1 - 2 / (e^2|x| + 1)."""
    size, z = tl.abs(x), x * x
    p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, p * x + x, tl.where(x < 0.0, -far, far))


def launch(kernel, grid: tuple[int, ...], given: dict, **rest) -> None:
    """Launches ``kernel`` with those of ``given``, its family's arguments by name, that it takes, and with the ``rest``."""
    kernel[grid](**{name: given[name] for name in kernel.arg_names if name in given}, **rest, **FUSION)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def block(n: int, largest: int, smallest: int = 16) -> int:
    """The power of two that covers n, within smallest..largest (16 is the least that a dot product takes)."""
    return max(smallest, min(largest, next_power_of_2(n)))


class Scratch:
    """Buffers by name, shape and dtype. None is ever freed or moved, because captured graphs hold their addresses."""

    def __init__(self):
        self.buffers: dict[tuple, torch.Tensor] = {}

    def __call__(self, device, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        key = (device, name, shape, dtype)
        buffer = self.buffers.get(key)
        if buffer is None:
            buffer = self.buffers[key] = torch.zeros(shape, dtype=dtype, device=device)
        return buffer


class _Active(threading.local):
    """Engines in different threads do not see each other's."""

    def __init__(self):
        self.scratch = Scratch()


_active = _Active()


def scratch(device, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A buffer of the active ``Scratch``; zero when first given out, later whatever its last user left in it."""
    return _active.scratch(device, name, *shape, dtype=dtype)


def room(device, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scratch of ``shape`` for what grows with the tokens of a call: part of a buffer of the next power of two, so that all lengths together take
    at most four times what the longest does. Contents are undefined."""
    count = math.prod(shape)
    return scratch(device, name, next_power_of_2(count), dtype=dtype)[:count].view(shape)


@contextmanager
def scratch_of(owner: Scratch):
    """Engines that may run on different CUDA streams each have their own scratch memory."""
    previous, _active.scratch = _active.scratch, owner
    try:
        yield
    finally:
        _active.scratch = previous


@dataclass(frozen=True)
class Variant:
    """One default configuration of a kernel, to be compiled ahead of time and held to a budget.

    ``signature`` maps every argument that is no constexpr to its Triton type ("*bf16", "*fp32", "*i32", "*i64", "i32",
    "fp32"); pointers and integers named in ``aligned`` are divisible by 16. ``tensor_core``: the kernel must use tensor
    cores (wgmma on sm_90, mma on the others). ``spills`` is the budget in bytes. ``one_by_one``: each wgmma may wait for the one before.
    """

    name: str
    kernel: object
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int = 4
    num_stages: int = 2
    tensor_core: bool = False
    aligned: tuple[str, ...] = field(default=())
    spills: int = 0
    registers: int = 255
    shared: int = 227 * 1024  # bytes; sm_80's budget is smaller (compile.py)
    archs: tuple[int, ...] = (80, 90, 100)
    one_by_one: bool = False


def variant(name: str, kernel, types: dict[str, str], constexprs: dict, *, loose=(), dtype="bf16", **budget) -> Variant:
    """The ``Variant`` of one kernel of a family. ``types`` are the family's, by argument: what is no constexpr and has none
    there is "i32"; ``dtype`` stands in for bf16. All pointers and integers are aligned, except those that launches do not
    specialize and the ``loose`` ones."""
    signature = {n: types.get(n, "i32").replace("bf16", dtype) for n in kernel.arg_names if n not in constexprs}
    loose = (*loose, *getattr(kernel, "do_not_specialize", ()))  # the interpreter's functions, never compiled, have none
    aligned = tuple(n for n, t in signature.items() if n not in loose and t != "fp32")
    return Variant(name, kernel, signature, dict(constexprs), aligned=aligned, **budget)
