"""SwiGLU, GEGLU, GLU and the two GELUs, forward and backward, one launch each.

Bound by memory: a gated one reads 4 and writes 2 bytes an element of y in bf16, its backward reads 6 and writes 4. The backward can
write y as well (2 bytes more), which saves keeping y from forward to backward. Not fused into the matrix products around
them: those write and read the same elements once, whoever computes on them.

A program owns a tile of 4 rows by 512 columns: each of 128 threads has two 16-byte loads of every tensor. 512 divides the
usual feed-forward widths, and 512 tokens of the smallest model still make 384 programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..ops.activation import GATED, KINDS, _check_kind
from .common import FUSION, Variant, block, variant, wait_for_previous

ROWS, COLUMNS, WARPS = 4, 512, 4
_SWIGLU: tl.constexpr = tl.constexpr(KINDS.index("swiglu"))
_GELU_TANH: tl.constexpr = tl.constexpr(KINDS.index("gelu_tanh"))
_GELU: tl.constexpr = tl.constexpr(KINDS.index("gelu"))
_GLU: tl.constexpr = tl.constexpr(KINDS.index("glu"))
_TWO_SQRT_TWO_OVER_PI: tl.constexpr = tl.constexpr(1.5957691216057308)
_CUBIC: tl.constexpr = tl.constexpr(0.044715)
_SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
_DENSITY: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gate_of(h, KIND: tl.constexpr):
    """What h, or of GLU 1, is multiplied by: sigmoid(h), sigmoid(2u) = (1 + tanh u) / 2, or the normal distribution. Contractions
    are written out, so that forward and backward give the same bits."""
    if KIND == _SWIGLU:
        return _sigmoid(h)
    if KIND == _GLU:
        return _sigmoid(h)
    if KIND == _GELU:
        return 0.5 * (1.0 + tl.erf(h * _SQRT_HALF))
    return _sigmoid(tl.fma(_TWO_SQRT_TWO_OVER_PI * _CUBIC * h * h, h, _TWO_SQRT_TWO_OVER_PI * h))


@triton.jit
def slope_of(h, gate, KIND: tl.constexpr):
    """Derivative of h gate(h), or of GLU's gate(h)."""
    if KIND == _GLU:
        return gate * (1.0 - gate)
    if KIND == _SWIGLU:
        return gate * (1.0 + h * (1.0 - gate))
    if KIND == _GELU:
        return gate + h * tl.exp(-0.5 * h * h) * _DENSITY
    small = tl.where(tl.abs(h) > 15.0, 0.0, h)  # beyond, gate (1 - gate) is 0 and h^2 may be infinite
    return gate + h * gate * (1.0 - gate) * _TWO_SQRT_TWO_OVER_PI * (1.0 + 3.0 * _CUBIC * small * small)


@triton.jit
def _tile(N, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    return row, column, (row < N) & (column < F)


@triton.jit(do_not_specialize=["N"])
def dynadapt_activation_forward(h, y, N, F: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    wait_for_previous()
    row, column, inside = _tile(N, F, ROWS, COLUMNS)
    GATED_KIND: tl.constexpr = KIND != _GELU and KIND != _GELU_TANH
    width: tl.constexpr = 2 * F if GATED_KIND else F
    x = tl.load(h + row * width + column, inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    out = gate_of(x, KIND) if KIND == _GLU else x * gate_of(x, KIND)
    if GATED_KIND:
        out *= tl.load(h + row * width + F + column, inside, other=0.0).to(tl.float32)
    tl.store(y + row * F + column, out.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["N"])
def dynadapt_activation_backward(dy, h, dh, y, N, F: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    wait_for_previous()
    row, column, inside = _tile(N, F, ROWS, COLUMNS)
    GATED_KIND: tl.constexpr = KIND != _GELU and KIND != _GELU_TANH
    width: tl.constexpr = 2 * F if GATED_KIND else F
    x = tl.load(h + row * width + column, inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    g = tl.load(dy + row * F + column, inside, other=0.0).to(tl.float32)
    gate = gate_of(x, KIND)
    out = gate if KIND == _GLU else x * gate
    slope = slope_of(x, gate, KIND)
    if GATED_KIND:
        up = tl.load(h + row * width + F + column, inside, other=0.0).to(tl.float32)
        tl.store(dh + row * width + F + column, (g * out).to(dh.dtype.element_ty), inside)
        slope *= up
        out *= up
    tl.store(dh + row * width + column, (g * slope).to(dh.dtype.element_ty), inside)
    if y is not None:
        tl.store(y + row * F + column, out.to(y.dtype.element_ty), inside)


def check_activation(op, kind, y_like, h_like, *tensors):
    """(N, F) of ``y_like`` [N, F] and ``h_like`` [N, F or 2 F]; raises ValueError where these do not fit, or ``tensors`` have gaps."""
    _check_kind(kind)
    N, F = y_like.shape
    expected = (N, 2 * F if kind in GATED else F)
    if tuple(h_like.shape) != expected:
        raise ValueError(f"{op}: h has shape {list(h_like.shape)}, accepted is {list(expected)}")
    for t in tensors:
        if t is not None and not t.is_contiguous():
            raise ValueError(f"{op}: a tensor of shape {list(t.shape)} has strides {list(t.stride())}, accepted is contiguous")
    return N, F


def _launch(kernel, op, kind, y_like, h_like, *tensors):
    N, F = check_activation(op, kind, y_like, h_like, *tensors)
    if N == 0 or F == 0:
        return
    columns = block(F, COLUMNS)
    grid = (triton.cdiv(N, ROWS), triton.cdiv(F, columns))
    kernel[grid](*tensors, N, F=F, KIND=KINDS.index(kind), ROWS=ROWS, COLUMNS=columns, num_warps=WARPS, **FUSION)


def activation_forward(h, kind, y) -> None:
    """y [N, F] from h [N, 2 F] (swiglu, geglu_tanh, glu) or [N, F]; see dynadapt.ops.activation."""
    _launch(dynadapt_activation_forward, "activation_forward", kind, y, h, h, y)


def activation_backward(dy, h, kind, dh, y=None) -> None:
    """dh like h from dy [N, F], and y [N, F] where given; see dynadapt.ops.activation. dh may be h's memory."""
    _launch(dynadapt_activation_backward, "activation_backward", kind, dy, h, dy, h, dh, y)


_TYPES = dict.fromkeys(("h", "y", "dy", "dh"), "*bf16")


def _variants():
    for kind, F in (("swiglu", 1536), ("swiglu", 8192), ("geglu_tanh", 2048), ("glu", 2048), ("gelu_tanh", 3072), ("gelu", 3072)):
        sizes = {"F": F, "KIND": KINDS.index(kind), "ROWS": ROWS, "COLUMNS": COLUMNS}
        yield variant(f"{kind} {F}", dynadapt_activation_forward, _TYPES, sizes, num_warps=WARPS)
        yield variant(f"{kind} {F}", dynadapt_activation_backward, _TYPES, {"y": None, **sizes}, num_warps=WARPS)
        yield variant(f"{kind} {F} and y", dynadapt_activation_backward, _TYPES, sizes, num_warps=WARPS)


VARIANTS: list[Variant] = list(_variants())
