"""Which implementation serves an op, and why.

Every op has the same signature in every backend: inputs first, then caller-allocated outputs.
``resolve`` is the only way to an implementation, and it never falls back: a request that nothing
can serve is an error that names the op, the dtype and the device.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Callable

import torch

BACKENDS = ("reference", "cpu")
_REFERENCE: dict[str, Callable] = {}
_CPU_DTYPES = (torch.float32, torch.bfloat16)


class UnsupportedOp(RuntimeError):
    """No implementation serves this op for this backend, dtype and device."""


@dataclass(frozen=True)
class Choice:
    """The implementation an op resolved to, with the reason that ``Engine.explain`` prints."""

    op: str
    backend: str
    function: Callable
    reason: str


def reference(function: Callable) -> Callable:
    """Register ``function`` as the definition of the op that carries its name."""
    _REFERENCE[function.__name__] = function
    return function


def native_module():
    """The compiled module ``dynadapt._C``, or an error that says how to get it."""
    try:
        return importlib.import_module("dynadapt._C")
    except ImportError as error:
        raise UnsupportedOp(
            f"backend='cpu' needs the native extension dynadapt._C, which did not import ({error}); "
            "build it with `pip install -e .`, or ask for backend='reference'"
        ) from error


def choose_backend(backend: str, dtype: torch.dtype) -> str:
    """Turn ``auto`` into a backend name; everything else is checked and returned as it is."""
    if backend == "auto":
        return "reference" if dtype == torch.float64 else "cpu"
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of auto, {', '.join(BACKENDS)}")
    return backend


def resolve(op: str, backend: str, dtype: torch.dtype) -> Choice:
    """The implementation of ``op`` in ``backend`` for ``dtype`` on the CPU.

    Raises:
        UnsupportedOp: when the backend has no implementation for this op and dtype.
    """
    if op not in _REFERENCE:
        raise UnsupportedOp(f"op {op!r} is not defined; known: {', '.join(sorted(_REFERENCE))}")
    if backend == "reference":
        return Choice(op, backend, _REFERENCE[op], "asked for" if dtype != torch.float64 else "float64 is served by the reference only")
    if dtype not in _CPU_DTYPES:
        raise UnsupportedOp(f"op {op!r}, backend 'cpu', dtype {dtype}: the native kernels serve float32 and bfloat16")
    function = getattr(native_module(), op, None)
    if function is None:
        raise UnsupportedOp(f"op {op!r}, dtype {dtype}, device 'cpu': dynadapt._C has no such kernel")
    return Choice(op, backend, function, f"native kernels, {native_module().isa()}")


def defined_ops() -> tuple[str, ...]:
    """Names of all ops that have a reference."""
    return tuple(sorted(_REFERENCE))
