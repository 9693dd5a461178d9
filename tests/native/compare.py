"""How native ops are compared: no further from the float64 truth than plain torch is in the same dtype, plus a little."""

import torch

from dynadapt import _C
from dynadapt.ops import linear  # noqa: F401  (registers the references)
from dynadapt.ops.dispatch import resolve
from dynadapt.ops.matrix import DenseMatrix

DTYPES = [torch.float32, torch.bfloat16]
# Allowed beyond torch's own error, in units of the largest true value. float32: our sums are one chain over K, torch's
# are several; bfloat16: half of one rounding.
TOLERANCE = {torch.float32: {"largest": 2e-6, "rms": 3e-7}, torch.bfloat16: {"largest": 2.0**-10, "rms": 2.0**-13}}


def poisoned(*shape, dtype=torch.float32):
    """An output nobody has written to yet."""
    return torch.full(shape, float("nan"), dtype=dtype)


def _convert(value, dtype, wide, matrix):
    """``value`` for one run: activations in ``dtype``, float32 outputs in ``wide``, Weight through ``matrix``."""
    if isinstance(value, Weight):
        return matrix(value.tensor.to(dtype))
    if isinstance(value, list):
        return [_convert(v, dtype, wide, matrix) for v in value]
    if isinstance(value, Out):
        return value.tensor.clone().to(wide if value.wide else dtype)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return _like(value, value.to(dtype) if value.dtype != torch.float32 or dtype == torch.float64 else value.clone())
    return value


def _like(original, copy):
    """``copy`` with the strides of ``original``."""
    if original.is_contiguous():
        return copy
    return torch.empty_strided(original.shape, original.stride(), dtype=copy.dtype).copy_(copy)


class Weight:
    """A frozen weight: PackedMatrix for the native op, DenseMatrix for the reference."""

    def __init__(self, tensor):
        self.tensor = tensor


class Out:
    """An output as it stands before the call; ``wide`` ones stay float32 whatever the activations are."""

    def __init__(self, tensor, wide=False):
        self.tensor, self.wide = tensor, wide


def run(op, arguments, dtype):
    """The native op on ``arguments``; returns its outputs."""
    call = [_convert(a, dtype, torch.float32, _C.PackedMatrix) for a in arguments]
    getattr(_C, op)(*call)
    return [c for c, a in zip(call, arguments) if isinstance(a, Out)]


def reference(op, arguments, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    call = [_convert(a, dtype, wide, DenseMatrix) for a in arguments]
    resolve(op, "reference", dtype).function(*call)
    return [c for c, a in zip(call, arguments) if isinstance(a, Out)]


def threads_change_no_bit(op, arguments, dtype):
    """One, two and five threads give the same outputs, bit for bit."""
    results = []
    for threads in (1, 2, 5):
        _C.set_num_threads(threads)
        results.append(run(op, arguments, dtype))
    _C.set_num_threads(0)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other)), op


def check(op, arguments, dtype, slack=1.0):
    """Compare all outputs of ``op``; returns the native ones. ``slack`` multiplies the tolerance."""
    ours = run(op, arguments, dtype)
    plain = reference(op, arguments, dtype)
    truth = reference(op, arguments, torch.float64)
    for i, (o, p, t) in enumerate(zip(ours, plain, truth)):
        assert torch.isfinite(o).all(), f"{op}: output {i} has values that are not finite"
        scale = t.abs().max().item()
        for name, norm in (("largest", lambda e: e.abs().max().item()), ("rms", lambda e: e.square().mean().sqrt().item())):
            error, bound = norm(o.double() - t), norm(p.double() - t) + slack * TOLERANCE[dtype][name] * scale
            assert error <= bound, f"{op}: output {i}: {name} error {error:.3g}, plain torch allows {bound:.3g} (values to {scale:.3g})"
    return ours


def acts(*shape, dtype):
    """Random activations, already rounded to ``dtype`` so that all runs see the same numbers."""
    return torch.randn(shape).to(dtype)


def assert_threads_change_nothing(op, arguments, dtype):
    """The same bits with one, two and five threads."""
    results = []
    try:
        for threads in (1, 2, 5):
            _C.set_num_threads(threads)
            results.append(run(op, arguments, dtype))
    finally:
        _C.set_num_threads(0)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def assert_rows_stand_alone(op, arguments, dtype, rows, bad_row):
    """Row-wise outputs have the same bits without the rows behind ``bad_row`` and with NaN in ``bad_row`` of every input."""
    by_row = lambda t: isinstance(t, torch.Tensor) and t.is_floating_point() and t.shape[:1] == (rows,)  # noqa: E731
    outputs = [i for i, a in enumerate(a for a in arguments if isinstance(a, Out)) if a.tensor.shape[:1] == (rows,)]
    cut = lambda t: t[:bad_row].contiguous() if isinstance(t, torch.Tensor) and t.shape[:1] == (rows,) else t  # noqa: E731
    whole = run(op, arguments, dtype)
    short = run(op, [Out(cut(a.tensor), a.wide) if isinstance(a, Out) else cut(a) for a in arguments], dtype)
    dirty = [a.clone() if by_row(a) else a for a in arguments]
    for a in dirty:
        if by_row(a):
            a[bad_row] = float("nan")
    dirty = run(op, dirty, dtype)
    others = torch.arange(rows) != bad_row
    for i in outputs:
        assert torch.equal(whole[i][:bad_row], short[i])
        assert torch.equal(whole[i][others], dirty[i][others])
        assert not torch.isfinite(dirty[i][bad_row]).all()
