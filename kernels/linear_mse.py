"""Linear read-out with squared error: prediction, loss, gradients of the input, the weight and the bias.

One launch computes pred and loss of a block of rows, then reads the rows again (from L1 or L2) for dh and for the block's own
partial sums of dweight and dbias; a second one, needed only when a weight gradient is asked for, adds the partials in order.
h is read once from device memory and dh written once; partials are N / ROWS rows of H float32. Not fused: the two launches,
because a sum over all rows without atomics needs a point where all blocks are done.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, block, launch, scratch, variant, wait_for_previous

ROWS, COLS = 16, 256  # 4,096 values of h in four warps
SUM_ROWS, SUM_COLS = 64, 32  # partials summed at a time, a full 128-byte line wide


@triton.jit(do_not_specialize=["N"])
def dynadapt_linear_mse(
    h,
    weight,
    bias,
    target,
    weights,
    pred,
    loss,
    dh,
    dweight,
    dbias,
    N,
    stride_h,
    stride_dh,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """dweight [blocks, H] and dbias [blocks] are this block of rows' partial sums."""
    wait_for_previous()
    pid = tl.program_id(0)
    row = pid * ROWS + tl.arange(0, ROWS)
    live = row < N
    h += row.to(tl.int64)[:, None] * stride_h
    value = tl.zeros((ROWS,), tl.float32)
    for start in range(0, H, COLS):
        cols = start + tl.arange(0, COLS)
        x = tl.load(h + cols[None, :], mask=live[:, None] & (cols < H)[None, :], other=0.0).to(tl.float32)  # [ROWS, COLS]
        w = tl.load(weight + cols, mask=cols < H, other=0.0).to(tl.float32)
        value += tl.sum(x * w[None, :], 1)
    if bias is not None:
        value += tl.load(bias).to(tl.float32)
    error = value - tl.load(target + row, mask=live, other=0.0).to(tl.float32)
    tl.store(pred + row, value, mask=live)
    tl.store(loss + row, error * error, mask=live)
    d = 2 * error
    if weights is not None:
        d *= tl.load(weights + row, mask=live, other=0.0).to(tl.float32)
    d = tl.where(live, d, 0.0)
    if dbias is not None:
        tl.store(dbias + pid, tl.sum(d, 0))
    if (dh is not None) or (dweight is not None):
        for start in range(0, H, COLS):
            cols = start + tl.arange(0, COLS)
            if dh is not None:
                w = tl.load(weight + cols, mask=cols < H, other=0.0).to(tl.float32)
                out = dh + row.to(tl.int64)[:, None] * stride_dh + cols[None, :]
                tl.store(out, (d[:, None] * w[None, :]).to(dh.dtype.element_ty), mask=live[:, None] & (cols < H)[None, :])
            if dweight is not None:
                x = tl.load(h + cols[None, :], mask=live[:, None] & (cols < H)[None, :], other=0.0).to(tl.float32)
                tl.store(dweight + pid.to(tl.int64) * H + cols, tl.sum(d[:, None] * x, 0), mask=cols < H)


@triton.jit(do_not_specialize=["blocks"])
def dynadapt_linear_mse_sum(partial_weight, partial_bias, dweight, dbias, blocks, H: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """dweight [H] += the sum of partial_weight [blocks, H]; the first program does the same for dbias."""
    wait_for_previous()
    pid = tl.program_id(0)
    if dweight is not None:
        cols = pid * COLS + tl.arange(0, COLS)
        total = tl.zeros((COLS,), tl.float32)
        for start in range(0, blocks, ROWS):
            row = start + tl.arange(0, ROWS)
            x = tl.load(
                partial_weight + row.to(tl.int64)[:, None] * H + cols[None, :],
                mask=(row < blocks)[:, None] & (cols < H)[None, :],
                other=0.0,
            )  # [ROWS, COLS]
            total += tl.sum(x, 0)
        out = dweight + cols
        tl.store(out, tl.load(out, mask=cols < H, other=0.0) + total, mask=cols < H)
    if dbias is not None:
        if pid == 0:
            bias = 0.0
            for start in range(0, blocks, ROWS):
                row = start + tl.arange(0, ROWS)
                bias += tl.sum(tl.load(partial_bias + row, mask=row < blocks, other=0.0), 0)
            tl.store(dbias, tl.load(dbias) + bias)


def linear_mse(h, weight, bias, target, weights, pred, loss, dh, dweight, dbias) -> None:
    """pred, loss [N] from h [N, H], weight [H], bias [1] or None, target [N]; weights [N] scale the gradients.

    dh [N, H], dweight [H], dbias [1] may be None; the last two are added to, in a fixed order.
    """
    N, H = h.shape
    if weight.shape != (H,):
        raise ValueError(f"linear_mse: weight has shape {list(weight.shape)}, accepted is [{H}]")
    blocks = triton.cdiv(N, ROWS)
    partial_weight = None if dweight is None else scratch(h.device, "linear_mse dweight", blocks, H)
    partial_bias = None if dbias is None else scratch(h.device, "linear_mse dbias", blocks)
    sums = dict(dweight=partial_weight, dbias=partial_bias)
    given = dict(h=h, weight=weight, bias=bias, target=target, weights=weights, pred=pred, loss=loss, dh=dh, **sums)
    strides = dict(stride_h=h.stride(0), stride_dh=0 if dh is None else dh.stride(0))
    launch(dynadapt_linear_mse, (blocks,), given, N=N, **strides, H=H, ROWS=ROWS, COLS=block(H, COLS), num_warps=4)
    if dweight is None and dbias is None:
        return
    grid = (1 if dweight is None else triton.cdiv(H, SUM_COLS),)
    dynadapt_linear_mse_sum[grid](partial_weight, partial_bias, dweight, dbias, blocks, H, SUM_ROWS, SUM_COLS, num_warps=4, **FUSION)


_TYPES = dict.fromkeys(("h", "weight", "dh"), "*bf16")
_TYPES |= dict.fromkeys(("bias", "target", "weights", "pred", "loss", "dweight", "dbias", "partial_weight", "partial_bias"), "*fp32")
VARIANTS = [
    variant("bf16 H=2048", dynadapt_linear_mse, _TYPES, {"H": 2048, "ROWS": ROWS, "COLS": COLS}, registers=168),
    variant("H=2048", dynadapt_linear_mse_sum, _TYPES, {"H": 2048, "ROWS": SUM_ROWS, "COLS": SUM_COLS}, registers=128),
]
