"""What the adapters' gradient kernels share: a tile of a product that sums over a stream's tokens, and where it goes."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import dot


@triton.jit
def tile_times_left(left, tile, tokens, rows, columns, BR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, CHUNK: tl.constexpr):
    """tile[:, columns]^T left[:, rows]; [BC, BR]. left, tile: (tensor, stride between its tokens); rows, columns: (first, end);
    tokens: (the stream's first, how many it has, first and last chunk of them)."""
    w_tensor, w_stride = left
    z_tensor, z_stride = tile
    row0, T, first, last = tokens
    r0, r_end = rows
    c0, c_end = columns
    r = r0 + tl.arange(0, BR)
    c = c0 + tl.arange(0, BC)
    total = tl.zeros([BC, BR], tl.float32)
    for chunk in range(first, last):
        begin, end = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, T)
        acc = tl.zeros([BC, BR], tl.float32)
        for t0 in range(begin, end, BT):
            t = t0 + tl.arange(0, BT)
            live = (t < end)[:, None]
            row = (row0 + t).to(tl.int64)[:, None]
            z = tl.load(z_tensor + row * z_stride + c[None, :], mask=live & (c < c_end)[None, :], other=0.0)  # [BT, BC]
            w = tl.load(w_tensor + row * w_stride + r[None, :], mask=live & (r < r_end)[None, :], other=0.0)  # [BT, BR]
            acc = dot(tl.trans(z), w, acc)
        total += acc
    return total


@triton.jit
def put(out, columns, live, rows, total, scale, ACCUMULATE: tl.constexpr):
    """scale total, added to what is there in one rounding: left to the compiler, that would depend on the kernel around it."""
    r0, end, stride = rows
    r = r0 + tl.arange(0, total.shape[1])[None, :]
    offset, mask = columns + r * stride, live & (r < end)
    if ACCUMULATE:
        value = tl.fma(scale, total, tl.load(out + offset, mask=mask, other=0.0))
    else:
        value = scale * total
    tl.store(out + offset, value, mask=mask)
