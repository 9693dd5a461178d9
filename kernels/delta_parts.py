"""What the kernels of the gated delta rule share: how a chunk's rows, gates and decays are read, and their sizes."""

from __future__ import annotations

import triton
import triton.language as tl

from ..ops.delta_scratch import CHUNK
from .common import block, variant

DIAGONAL = 16
WARPS, TILES = 4, {"BV": 32, "BK": 32}  # value columns of a program, key columns of a step


@triton.jit
def times(a, b):
    """a b of float32."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def tokens(x, stride, first, t, length, columns, width):
    """[C, D] in float32 of rows t of a stream whose first is ``first``; 0 beyond its length and ``width``."""
    at = x + (first + t).to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=(t < length)[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def block_of(x, stride, first, t, length, at, d, DK: tl.constexpr):
    """[C, BK] of columns ``d`` of a head that begins at ``at``."""
    return tokens(x + at, stride, first, t, length, d, DK)


@triton.jit
def lengths_of(units, s, T, t, length, key_head, HK: tl.constexpr):
    """1 / length of the queries and of the keys [C] of a chunk; 0 of rows that do not count."""
    at = units + (s.to(tl.int64) * T + t) * 2 * HK + key_head
    return tl.load(at, mask=t < length, other=0.0), tl.load(at + HK, mask=t < length, other=0.0)


@triton.jit
def gates(g, beta, first, t, length, head, HV: tl.constexpr):
    """(G float64, G at the end, beta) [C] of a chunk; beyond the length nothing decays and nothing is written."""
    at = (first + t).to(tl.int64) * HV + head
    each = tl.load(g + at, mask=t < length, other=0.0).to(tl.float64)
    return tl.cumsum(each, 0), tl.sum(each, 0), tl.load(beta + at, mask=t < length, other=0.0)


@triton.jit
def decays(G, C: tl.constexpr):
    """D [C, C]."""
    i = tl.arange(0, C)
    return tl.exp(tl.where(i[:, None] >= i[None, :], G[:, None] - G[None, :], float("-inf")).to(tl.float32))


@triton.jit
def stream_of(s, T, slots, lengths):
    """(slot, first row, length) of stream s."""
    length = T
    if lengths is not None:
        length = tl.load(lengths + s)
    return tl.load(slots + s).to(tl.int64), s * T, length


def sizes(hk: int, hv: int, dk: int, dv: int) -> dict:
    """The constants of a call by name, with the tiles that most kernels take."""
    return dict(HK=hk, HV=hv, DK=dk, DV=dv, **tiles(TILES, dk, dv), C=CHUNK, B=DIAGONAL)


def tiles(most: dict, dk: int, dv: int) -> dict:
    return {"BK": block(dk, most["BK"]), "BV": block(dv, most["BV"])}


_TYPES = dict.fromkeys(("qkv", "out", "dout", "dqkv"), "*bf16") | {"slots": "*i32", "lengths": "*i32", "scale": "fp32", "eps": "fp32"}
_TYPES |= dict.fromkeys(("g", "beta", "state", "dg", "dbeta", "inverses", "units", "states", "writes"), "*fp32")
_TYPES |= dict.fromkeys(("dstates", "dwrites", "pairs", "along"), "*fp32")


def variants(kernels):
    """Those of ``kernels`` [(what tells it from others, kernel, largest tiles or None for the usual, constants)]."""
    for hk, hv, d, dtype in ((16, 32, 128, "bf16"), (16, 16, 64, "fp32")):
        for suffix, kernel, most, other in kernels:
            known = sizes(hk, hv, d, d) | (tiles(most, d, d) if most else {})
            constexprs = {name: value for name, value in known.items() if name in kernel.arg_names} | other
            name, loose = f"{hk}, {hv} x {d}, {dtype}{suffix}", ("entries", "step")
            yield variant(name, kernel, _TYPES, constexprs, dtype=dtype, num_stages=1, num_warps=WARPS, loose=loose)
