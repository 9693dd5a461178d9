"""Which implementation serves an op, and why.

Every op has the same signature in every backend: inputs first, then caller-allocated outputs.
``resolve`` is the only way to an implementation, and it never falls back: a request that nothing
can serve is an error that names the op, the dtype and the device.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynadapt.common.checks import choice, wrong

from .table import OPS, Row

BACKENDS = ("reference", "cpu", "triton")
_FAST_DTYPES = (torch.float32, torch.bfloat16)


class UnsupportedOp(RuntimeError):
    """No implementation serves this op for this backend, dtype and device."""


@dataclass(frozen=True)
class Choice:
    """The implementation an op resolved to, with the reason that ``Engine.explain`` prints."""

    op: str
    backend: str
    function: Callable
    reason: str


def native_module():
    """The compiled module ``dynadapt._C``, or an error that says how to get it."""
    try:
        return importlib.import_module("dynadapt._C")
    except ImportError as error:
        raise UnsupportedOp(
            f"backend='cpu' needs the native extension dynadapt._C, which did not import ({error}); "
            "build it with `pip install -e .` in a checkout, or ask for backend='reference'"
        ) from error


def kernel_module(name: str):
    """The module ``dynadapt.kernels.<name>``, or an error that says what is missing."""
    try:
        return importlib.import_module(f"dynadapt.kernels.{name}")
    except ImportError as error:
        raise UnsupportedOp(
            f"backend='triton' needs Triton and dynadapt.kernels, which did not import ({error}); install `triton` "
            "beside a CUDA build of torch, or ask for backend='cpu' or 'reference'"
        ) from error


def choose_backend(backend: str, dtype: torch.dtype, device: str = "cpu") -> str:
    """Turn ``auto`` into a backend name; everything else is checked and returned as it is."""
    if backend == "auto":
        if dtype == torch.float64:
            return "reference"
        return "cpu" if device == "cpu" else "triton"
    return choice("backend", backend, ("auto", *BACKENDS))


def choose_device(device: str | torch.device, backend: str, dtype: torch.dtype) -> torch.device:
    """Turn ``auto`` into a device; everything else is checked.

    Raises:
        ValueError: naming the device that is not there or that the backend does not serve.
    """
    cuda, expected = torch.cuda.is_available(), "auto, cpu, cuda or cuda:N"
    if not isinstance(device, (str, torch.device)):
        raise wrong("device", device, expected)
    if device == "auto":
        usable = cuda and backend in ("auto", "triton") and dtype != torch.float64 and importlib.util.find_spec("triton") is not None
        return torch.device("cuda" if usable else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise wrong("device", device, expected) from error
    if chosen.type not in ("cpu", "cuda") or chosen.type == "cpu" and chosen.index:
        raise wrong("device", device, expected)
    if chosen.type == "cuda" and not cuda:
        raise ValueError(f"device={device!r}: torch {torch.__version__} sees no GPU")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device!r}: torch sees {torch.cuda.device_count()} GPU(s), cuda:0 and up")
    if chosen.type == "cpu" and backend == "triton" and cuda and not kernel_module("common").INTERPRET:
        raise ValueError(f"device={device!r} with backend='triton': its kernels work on the GPU; use device='cuda', or backend='cpu'")
    if chosen.type == "cuda" and backend == "cpu":
        raise ValueError(f"backend='cpu' with device={device!r}: the native kernels work on the CPU; use backend='triton'")
    return chosen


def resolve(op: str, backend: str, dtype: torch.dtype) -> Choice:
    """The implementation of ``op`` in ``backend`` for ``dtype``.

    Raises:
        UnsupportedOp: when the backend has no implementation for this op and dtype.
    """
    if op not in OPS:
        raise UnsupportedOp(f"op {op!r} is not defined; known: {', '.join(sorted(OPS))}")
    row = OPS[op]
    if backend == "reference":
        return Choice(op, backend, row.reference, "asked for" if dtype != torch.float64 else "float64 is served by the reference only")
    if dtype not in _FAST_DTYPES:
        raise UnsupportedOp(f"op {op!r}, backend {backend!r}, dtype {dtype}: its kernels serve float32 and bfloat16")
    return _triton(row, dtype) if backend == "triton" else _native(row, dtype)


def _native(row: Row, dtype: torch.dtype) -> Choice:
    if not row.native:
        raise UnsupportedOp(f"op {row.name!r}, dtype {dtype}, device 'cpu': dynadapt._C has no such kernel")
    module = native_module()
    return Choice(row.name, "cpu", getattr(module, row.name), f"native kernels, {module.isa()}")


def _triton(row: Row, dtype: torch.dtype) -> Choice:
    op = row.name
    if not row.triton:
        raise UnsupportedOp(f"op {op!r}, backend 'triton', dtype {dtype}: no kernel file serves it")
    common = kernel_module("common")
    if not (torch.cuda.is_available() or common.INTERPRET):
        raise UnsupportedOp(
            f"op {op!r}, backend 'triton': no CUDA device is there; set TRITON_INTERPRET=1 before dynadapt is "
            "imported to run the kernels in Triton's interpreter, or ask for backend='cpu'"
        )
    where = "in Triton's interpreter" if common.INTERPRET else f"on {torch.cuda.get_device_name()}"
    module = kernel_module(row.family)
    reason = getattr(module, "reason", lambda op: "Triton")(op)
    return Choice(op, "triton", getattr(module, op), f"{reason}, {where}")


def defined_ops() -> tuple[str, ...]:
    """Names of all ops."""
    return tuple(sorted(OPS))
