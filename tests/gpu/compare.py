"""How Triton kernels are compared with their references.

On a machine without a GPU they run in Triton's interpreter on small odd shapes, in float32 and in bfloat16 (dot products
are cast to float32 first, see kernels/common.py, and stores round, see interpreter.py). On a GPU the same cases run on it,
and those marked ``gpu`` at real sizes. The rule is that of the native kernels: no further from the float64 truth than plain
torch in the same dtype, plus a little.
"""

import pytest
import torch
from native.compare import Out, Weight, poisoned

from dynadapt.kernels.common import INTERPRET
from dynadapt.ops.dispatch import resolve
from dynadapt.ops.matrix import DenseMatrix

__all__ = ["DEVICE", "DTYPES", "Out", "Weight", "acts", "check", "move", "poisoned", "run", "skip_without_gpu"]

DEVICE = "cpu" if INTERPRET else "cuda"
DTYPES = [torch.float32, torch.bfloat16]
if INTERPRET:
    from .interpreter import round_to_bfloat16

    if not round_to_bfloat16():
        DTYPES = [torch.float32]
# Allowed beyond torch's own error, in units of the largest true value.
TOLERANCE = {torch.float32: {"largest": 4e-6, "rms": 6e-7}, torch.bfloat16: {"largest": 2.0**-9, "rms": 2.0**-12}}
skip_without_gpu = pytest.mark.skipif(INTERPRET, reason="the interpreter is on; GPU tests need TRITON_INTERPRET unset and a GPU")


def acts(*shape, dtype=torch.float32):
    """Random activations, already rounded to ``dtype`` so that all runs see the same numbers."""
    return torch.randn(shape).to(dtype)


def move(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(move(v, device) for v in value)
    return value


def _convert(value, dtype, wide, device):
    """``value`` for one run: activations in ``dtype``, float32 outputs in ``wide``; strides are kept."""
    if isinstance(value, Weight):
        return DenseMatrix(value.tensor.to(device=device, dtype=dtype))
    if isinstance(value, list):
        return [_convert(v, dtype, wide, device) for v in value]
    if isinstance(value, Out):
        return value.tensor.clone().to(device=device, dtype=wide if value.wide else dtype)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        kind = value.dtype if value.dtype == torch.float32 and dtype != torch.float64 else dtype
        copy = torch.empty_strided(value.shape, value.stride(), dtype=kind, device=device)
        return copy.copy_(value)
    return move(value, device)


def run(op, arguments, dtype, backend="triton"):
    """``op`` on ``arguments``; returns its outputs."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    call = [_convert(a, dtype, wide, DEVICE) for a in arguments]
    resolve(op, backend, dtype).function(*call)
    return [c for c, a in zip(call, arguments) if isinstance(a, Out)]


def allowed(name, dtype, count):
    """The tolerance for ``count`` values: the root mean square of a few is not far from the largest of them."""
    tolerance = TOLERANCE[dtype]
    return tolerance["largest"] if name == "largest" else min(tolerance["largest"], tolerance["rms"] * (1 + 8 / count**0.5))


def check(op, arguments, dtype, slack=1.0):
    """Compare all outputs of ``op``; returns the kernel's. ``slack`` multiplies the tolerance."""
    ours = run(op, arguments, dtype)
    plain = run(op, arguments, dtype, "reference")
    truth = run(op, arguments, torch.float64, "reference")
    for i, (o, p, t) in enumerate(zip(ours, plain, truth)):
        assert torch.isfinite(o).all(), f"{op}: output {i} has values that are not finite"
        scale = t.abs().max().item()
        for name, norm in (("largest", lambda e: e.abs().max().item()), ("rms", lambda e: e.square().mean().sqrt().item())):
            error, bound = norm(o.double() - t), norm(p.double() - t) + slack * allowed(name, dtype, t.numel()) * scale
            assert error <= bound, f"{op}: output {i}: {name} error {error:.3g}, plain torch allows {bound:.3g} (values to {scale:.3g})"
    return ours
