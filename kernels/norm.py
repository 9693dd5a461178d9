"""RMSNorm and LayerNorm. Forward fuses the residual add before the norm, backward the gradient that passes the norm by.

One launch each; a row is read once, stays in registers, and is written once. bf16 traffic per element: forward reads x and
delta and writes res and y (8 bytes), backward reads dy, res and dres and writes dx (8 bytes; 10 when it writes the forward's
y again). dweight and dbias take one launch more: every program adds up rows n, n + programs, n + 2 programs, ... in
registers, and a second kernel adds the programs' sums in order, so that no atomics are needed and the result is the same
each time. Not fused into the matrix product that follows: each of its column tiles would have to normalise the row again.
Not several rows a program either, but where dweight is summed: that is predicted to gain nothing (docs/gpu.md, What is predicted).

A thread holds 16 elements of each tensor of a row (two 16-byte loads in bf16) until 16 warps are reached, and more beyond.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..ops.norm import _check_kind
from .common import FUSION, Variant, launch, next_power_of_2, scratch, variant, wait_for_previous

GROUPS = 264  # programs that add up dweight: two for each of the H200's 132 multiprocessors
COLUMNS = 32  # of the second sum: 2048 / 32 = 64 programs, each reads 128-byte runs
SUM_ROWS = 32


def _warps(H: int) -> int:
    return max(1, min(16, next_power_of_2(H) // 512))


@triton.jit
def _affine(xhat, weight, bias):
    """xhat weight + bias, the same bits in forward and backward."""
    return xhat * weight if bias is None else tl.fma(xhat, weight, bias)


@triton.jit
def dynadapt_norm_forward(x, delta, weight, bias, eps, res, y, stat, H: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    wait_for_previous()
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)  # [BLOCK]
    inside = i < H
    row = tl.load(x + n * H + i, inside, other=0.0).to(tl.float32)
    w = tl.load(weight + i, inside, other=0.0).to(tl.float32)
    b = None
    if bias is not None:
        b = tl.load(bias + i, inside, other=0.0).to(tl.float32)
    if delta is not None:
        row += tl.load(delta + n * H + i, inside, other=0.0).to(tl.float32)
    if res is not None:
        rounded = row.to(res.dtype.element_ty)  # backward normalises what is stored, so forward does as well
        tl.store(res + n * H + i, rounded, inside)
        row = rounded.to(tl.float32)
    mean = 0.0
    if LAYER:
        # Of a division by a constant the compiler makes a product, and of it and the subtraction below one rounding: another mean than is stored.
        mean = tl.div_rn(tl.sum(row, 0), 1.0 * H)
    centred = tl.where(inside, row - mean, 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 0) / H + eps)
    tl.store(stat + 2 * n, mean)
    tl.store(stat + 2 * n + 1, rstd)
    tl.store(y + n * H + i, _affine((row - mean) * rstd, w, b).to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["N"])
def dynadapt_norm_backward(
    dy, res, weight, bias, stat, dres, dx, y, dweight, dbias, N, H: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr
):
    """dweight, dbias: float32 [programs, H], this program's sums. Without them there are N programs, one a row."""
    wait_for_previous()
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)  # [BLOCK]
    inside = i < H
    w = tl.load(weight + i, inside, other=0.0).to(tl.float32)
    b = None
    if bias is not None:
        b = tl.load(bias + i, inside, other=0.0).to(tl.float32)
    dweight_sum = tl.zeros([BLOCK], tl.float32)
    dbias_sum = tl.zeros([BLOCK], tl.float32)
    programs = tl.num_programs(0)
    for k in range(0, tl.cdiv(N - program, programs)):
        n = program.to(tl.int64) + k * programs
        g = tl.load(dy + n * H + i, inside, other=0.0).to(tl.float32)
        row = tl.load(res + n * H + i, inside, other=0.0).to(tl.float32)
        mean, rstd = tl.load(stat + 2 * n), tl.load(stat + 2 * n + 1)
        past = tl.zeros([BLOCK], tl.float32)
        if dres is not None:
            past = tl.load(dres + n * H + i, inside, other=0.0).to(tl.float32)
        xhat = (row - mean) * rstd  # g and w are 0 where the row has ended
        gw = g * w
        d = gw - xhat * (tl.sum(gw * xhat, 0) / H)
        if LAYER:
            d -= tl.sum(gw, 0) / H
        tl.store(dx + n * H + i, (d * rstd + past).to(dx.dtype.element_ty), inside)
        if y is not None:
            tl.store(y + n * H + i, _affine(xhat, w, b).to(y.dtype.element_ty), inside)
        if dweight is not None:
            dweight_sum += g * xhat
        if dbias is not None:
            dbias_sum += g
    if dweight is not None:
        tl.store(dweight + program.to(tl.int64) * H + i, dweight_sum, inside)
    if dbias is not None:
        tl.store(dbias + program.to(tl.int64) * H + i, dbias_sum, inside)


@triton.jit(do_not_specialize=["groups"])
def dynadapt_norm_sums(partials, out0, out1, groups, stride, H, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out0, out1 [H] += the first ``groups`` rows of partials [2, stride / H, H]; program axis 1 says which."""
    wait_for_previous()
    which = tl.program_id(1)
    i = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    r = tl.arange(0, ROWS)  # [ROWS]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, groups, ROWS):
        inside = (first + r < groups)[:, None] & (i < H)[None, :]
        total += tl.load(partials + which * stride + (first + r)[:, None] * H + i[None, :], inside, other=0.0)
    sums = tl.sum(total, 0)
    if which == 0:
        if out0 is not None:
            tl.store(out0 + i, tl.load(out0 + i, i < H) + sums, i < H)
    else:
        if out1 is not None:
            tl.store(out1 + i, tl.load(out1 + i, i < H) + sums, i < H)


def _check(op, shape, **tensors) -> None:
    for name, t in tensors.items():
        if t is not None and (tuple(t.shape) != tuple(shape) or not t.is_contiguous()):
            raise ValueError(
                f"{op}: {name} has shape {list(t.shape)} and strides {list(t.stride())}, accepted is {list(shape)}, contiguous"
            )


def norm_forward(x, delta, weight, bias, eps, kind, res, y, stat) -> None:
    """res = x + delta, y = norm(res); see dynadapt.ops.norm. All [N, H], stat float32 [N, 2], weight and bias [H]."""
    _check_kind(kind)
    N, H = x.shape
    _check("norm_forward", (N, H), x=x, delta=delta, res=res, y=y)
    _check("norm_forward", (H,), weight=weight, bias=bias)
    _check("norm_forward", (N, 2), stat=stat)
    if delta is not None and res is None:
        raise ValueError("norm_forward: res is missing, a tensor is needed where delta is given")
    if N:
        dynadapt_norm_forward[(N,)](
            x, delta, weight, bias, eps, res, y, stat, H=H, LAYER=kind == "layer", BLOCK=next_power_of_2(H), num_warps=_warps(H), **FUSION
        )


def norm_backward(dy, res, weight, stat, kind, dres, dx, dweight, dbias, bias=None, y=None) -> None:
    """Gradient of norm_forward, and its y again where y is given; see dynadapt.ops.norm. dweight, dbias: float32 [H]."""
    _check_kind(kind)
    N, H = dy.shape
    _check("norm_backward", (N, H), dy=dy, res=res, dres=dres, dx=dx, y=y)
    _check("norm_backward", (H,), weight=weight, bias=bias, dweight=dweight, dbias=dbias)
    _check("norm_backward", (N, 2), stat=stat)
    if N == 0:
        return
    learns = dweight is not None or dbias is not None
    programs = min(N, GROUPS) if learns else N
    partials = scratch(dy.device, "norm_sums", 2, GROUPS, H) if learns else None
    sums = dict(dweight=None if dweight is None else partials[0], dbias=None if dbias is None else partials[1])
    given = dict(dy=dy, res=res, weight=weight, bias=bias, stat=stat, dres=dres, dx=dx, y=y, N=N, **sums)
    sizes = dict(H=H, LAYER=kind == "layer", BLOCK=next_power_of_2(H))
    launch(dynadapt_norm_backward, (programs,), given, **sizes, num_warps=_warps(H))
    if learns:
        dynadapt_norm_sums[(triton.cdiv(H, COLUMNS), 2)](
            partials, dweight, dbias, programs, GROUPS * H, H, ROWS=SUM_ROWS, COLUMNS=COLUMNS, num_warps=4, **FUSION
        )


_TYPES = dict.fromkeys(("x", "delta", "weight", "bias", "res", "y", "dy", "dres", "dx"), "*bf16")
_TYPES |= dict.fromkeys(("stat", "dweight", "dbias", "partials", "out0", "out1"), "*fp32") | {"eps": "fp32"}


def _variant(name: str, kernel, absent, H: int, layer: bool = False) -> Variant:
    constants = {**dict.fromkeys(absent), "H": H, "LAYER": layer, "BLOCK": next_power_of_2(H)}
    return variant(name, kernel, _TYPES, constants, num_warps=_warps(H))


def _variants():
    for H in (576, 2048, 4096, 8192):
        yield _variant(f"rms {H}", dynadapt_norm_forward, ("bias",), H)
        yield _variant(f"rms {H}", dynadapt_norm_backward, ("bias", "dweight", "dbias"), H)
    yield _variant("layer 768", dynadapt_norm_forward, (), 768, True)
    yield _variant("layer 768, learning", dynadapt_norm_backward, (), 768, True)
    yield variant("768", dynadapt_norm_sums, _TYPES, {"ROWS": SUM_ROWS, "COLUMNS": COLUMNS})


VARIANTS: list[Variant] = list(_variants())
