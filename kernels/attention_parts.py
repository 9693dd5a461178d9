"""What the kernels of attention share: how rows are read and rotated, scores and their soft-cap, blocks, variants."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .common import Variant, block, dot, hyperbolic_tangent, variant

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
MAX_HEAD = 256  # a head lies in the registers of one program
WALKED: tl.constexpr = tl.constexpr(64)  # the most keys that a step of a walk takes


@triton.jit
def halves(base, row_stride, rows, valid, cos, sin, position, D: tl.constexpr, HP: tl.constexpr):
    """Both halves [B, HP] of rows of length D, rotated to position + rows where cos is given; rows not ``valid`` are 0."""
    H: tl.constexpr = (D + 1) // 2
    c = tl.arange(0, HP)
    at = base + rows[:, None] * row_stride + c[None, :]
    x1 = tl.load(at, mask=valid[:, None] & (c < H)[None, :], other=0)
    x2 = tl.load(at + H, mask=valid[:, None] & (c < D - H)[None, :], other=0)
    if cos is not None:
        place = (position + rows)[:, None] * H + c[None, :]
        cs = tl.load(cos + place, mask=valid[:, None] & (c < H)[None, :], other=0)
        sn = tl.load(sin + place, mask=valid[:, None] & (c < H)[None, :], other=0)
        w1, w2 = x1.to(tl.float32), x2.to(tl.float32)
        x1, x2 = (w1 * cs - w2 * sn).to(x1.dtype), (w2 * cs + w1 * sn).to(x1.dtype)
    return x1, x2


@triton.jit
def rows_of(base, row_stride, rows, valid, D: tl.constexpr, DP: tl.constexpr):
    """Rows [B, DP] of length D; rows not ``valid`` are 0."""
    c = tl.arange(0, DP)
    return tl.load(base + rows[:, None] * row_stride + c[None, :], mask=valid[:, None] & (c < D)[None, :], other=0)


@triton.jit
def joined(x1, x2):
    """[B, 2 HP] of two halves."""
    return tl.reshape(tl.permute(tl.join(x1, x2), (0, 2, 1)), [x1.shape[0], 2 * x1.shape[1]])


@triton.jit
def apart(x):
    """The two halves of ``joined``."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def capped(s, scale, softcap):
    """Products of queries and keys as they are, or with a soft-cap log2(e) times the capped scores; ``factor`` is what is left to multiply with."""
    if softcap is not None:
        s = hyperbolic_tangent(s * (scale / softcap)) * (softcap * LOG2E)
    return s


@triton.jit
def factor(scale, softcap):
    """Of the exponents of 2: left out of the scores themselves, as multiplying and subtracting is one instruction."""
    f = 1.0
    if softcap is None:
        f = scale * LOG2E
    return f


@triton.jit
def scores(q, k, scale, softcap, keys, last, masked, window):
    """Scores [BM, BN], soft-capped, to be multiplied with ``factor``; where ``masked`` (of a tile, so that others pay for no mask), of keys up
    to each row's own one, ``last`` [BM], and within the window that ends there."""
    s = capped(dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32)), scale, softcap)
    if masked:
        seen = keys[None, :] <= last[:, None]
        if window is not None:
            seen &= last[:, None] - keys[None, :] < window
        s = tl.where(seen, s, float("-inf"))
    return s


@triton.jit
def crosses(key, row, window, BM: tl.constexpr, BN: tl.constexpr):
    """Whether of BM rows from ``row`` on one does not see all of BN keys from ``key`` on."""
    masked = key + BN - 1 > row
    if window is not None:
        masked |= row + BM - 1 - key >= window
    return masked


@triton.jit
def walk_of(
    keys, values, head, length, first, segment, memory, window, HP: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Where BM queries from ``first`` on find theirs: the head's keys and values, the first tile of BN keys, and the key behind the last."""
    row0 = head.to(tl.int64) * (memory + segment)
    begin = 0
    if window is not None:
        begin = tl.maximum(length + first - window + 1, 0) // BN
    return keys + row0 * (2 * HP), values + row0 * DP, begin, length + tl.minimum(first + BM, segment)


@triton.jit
def stream_of(slots, mem_len, stream):
    slot = tl.load(slots + stream).to(tl.int64)
    length = 0
    if mem_len is not None:
        length = tl.load(mem_len + slot)
    return slot, length


def block_sizes(kernel: str, dtype: torch.dtype, d: int, large: bool, arch: int) -> tuple[dict, dict]:
    """(block sizes, launch options) by what was fastest on an H200 and leaves no register spilled.

    bfloat16 on Hopper: 4 warps of 16 rows of the accumulators each, which wgmma wants, and 64 rows walked at a time. Programs of 8 warps, of which
    fewer are there at a time, take 1.1 to 1.4 times as long however much there is to do. Three stages: of two, Triton waits for the second right
    behind its launch. On sm_100 8 warps where there is work for all multiprocessors, and 32 rows walked where accumulators have 128 columns. What is
    walked does not depend on ``large``, so that a stream's results do not depend on how many others there are. float32 has no tensor cores here
    and keeps whole rows in registers, those of heads of more than 128 in the registers of 8 warps where a program owns queries: 4 spilled 900 bytes.
    Heads of more than 128 have 8 warps forward however little there is to do, whose work is that of 4 with half the rows, which spilled 290 bytes;
    in backward two accumulators each that wide, over 8 warps with 16 rows walked at a time.
    On sm_80 (``arch`` 80) a product's operands are registers too, so its blocks are smaller in backward, those of dq most; and forward walks over heads of
    more than 128 as backward does, because sm_86, sm_89 and sm_120, which have its kernels, have 99 KiB of shared memory.
    """
    narrow = d <= 64
    own, walked = (128 if (large or d > 128) and arch != 80 else 64), (64 if narrow else 32)
    if arch == 90 and d <= 128:
        own, walked = 64, (64 if narrow or kernel != "dkv" else 32)
    if arch == 80:
        own, walked = (64 if narrow or kernel != "dq" else 32), (32 if kernel != "forward" else walked)
    wide = d > 128 and (kernel != "forward" or arch == 80) and dtype != torch.float32
    if wide:
        own, walked = 64, 16
    if dtype == torch.float32:
        own, walked = (32 if narrow else 16), 16
    sizes = {"BM": walked, "BN": own} if kernel == "dkv" else {"BM": own, "BN": walked}
    long_rows = dtype == torch.float32 and d > 128 and kernel != "dkv"
    stages = 3 if dtype != torch.float32 and (narrow or kernel != "dq") and not (wide and arch == 80) else 2
    return sizes, {"num_warps": 8 if own == 128 or wide or long_rows else 4, "num_stages": stages}


def sums_by_head(hq: int, hkv: int, d: int, arch: int) -> bool:
    """Whether dk and dv are summed head by head of a group, and so may be split over its heads. Two sums of more than 64 columns each
    would not fit in registers beside those of one head, nor do smaller ones where a product's operands are registers (sm_80) or
    accumulators come from tensor memory (sm_100)."""
    return hq > hkv and d <= 64 and arch == 90


def geometry(hq, hkv, d):
    return {"HQ": hq, "HKV": hkv, "D": d, "HP": block((d + 1) // 2, MAX_HEAD), "DP": block(d, MAX_HEAD)}


_TYPES = {
    **dict.fromkeys(("dout", "qkv", "out", "mem_k", "mem_v", "dqkv", "rotated_q", "keys", "values"), "*bf16"),
    **dict.fromkeys(("lse", "statistics", "cos", "sin", "shares"), "*fp32"),
    **dict.fromkeys(("mem_len", "slots", "done"), "*i32"),
    **dict.fromkeys(("scale", "softcap"), "fp32"),
    "window": "i32",
}


def _without(absent) -> str:
    """Of a variant's name: which of what a model may lack is ``absent``."""
    return "".join(f", no {what}" for what, argument in (("memory", "mem_len"), ("rotation", "cos")) if argument in absent)


def variant_of(kernel, function, d, dtype, large, arch, absent=("window", "softcap"), split=False) -> Variant:
    sizes, options = block_sizes(kernel, dtype, d, large, arch)
    if kernel == "dkv":
        sizes |= dict(BY_HEAD=sums_by_head(32, 8, d, arch), SPLIT=split)
    short = "bf16" if dtype == torch.bfloat16 else "fp32"
    name = f"d {d}, {short}, {sizes['BM']} x {sizes['BN']}{_without(absent)}"
    name += "" if "window" in absent else ", a window"
    name += "" if "softcap" in absent else ", capped"
    name += ", split by heads" if split else ""
    absent = (*absent, *(() if split else ("shares", "done")))
    nothing = {name: None for name in absent if name in function.arg_names}
    constexprs = {**geometry(32, 8, d), **sizes, **nothing}
    apart = kernel == "dkv" and d > 128  # the registers of two such sums leave no other way
    return variant(name, function, _TYPES, constexprs, dtype=short, tensor_core=short == "bf16", archs=(arch,), one_by_one=apart, **options)


SMALL, _LARGE = [[(d, torch.bfloat16, large) for d in (64, 128)] for large in (False, True)]
_HOPPER = [*SMALL, (96, torch.bfloat16, True), (64, torch.float32, False), (128, torch.float32, False)]
_MEMORY, _ROTATION = ("softcap", "window", "mem_k", "mem_v", "mem_len"), ("cos", "sin")
_GEMMA, _GEMMA_FP32 = (256, torch.bfloat16, True), (256, torch.float32, False)


def variants(kernel: str, function) -> list[Variant]:
    """Those of one kernel over shapes and architectures, with and without what may be absent."""
    found = [variant_of(kernel, function, *shape, arch) for shapes, arch in ((_HOPPER, 90), (_LARGE, 100), (SMALL, 80)) for shape in shapes]
    found += [variant_of(kernel, function, *SMALL[0], 90, absent=absent) for absent in (_MEMORY, _MEMORY + _ROTATION)]
    for absent in (("softcap",), ()):
        found += [variant_of(kernel, function, *_GEMMA, arch, absent=absent) for arch in (90, 100)]
        found.append(replace(variant_of(kernel, function, *_GEMMA, 80, absent=absent), spills={"dq": 32, "dkv": 12}.get(kernel, 0)))
        found += [variant_of(kernel, function, *_GEMMA_FP32, arch, absent=absent) for arch in (80, 90, 100)]
    return found


def key_variants(function, rows: int) -> list[Variant]:
    """Those of the kernel that puts keys and values side by side."""
    shapes = [(d, short, ()) for d, short in ((64, "bf16"), (128, "bf16"), (96, "bf16"), (256, "bf16"), (64, "fp32"))]
    shapes += [(64, "bf16", absent) for absent in (_MEMORY, _MEMORY + _ROTATION)]
    found = []
    for d, short, absent in shapes:
        nothing = {name: None for name in absent if name in function.arg_names}
        found.append(
            variant(f"d {d}, {short}{_without(absent)}", function, _TYPES, {**geometry(32, 8, d), "BR": rows, **nothing}, dtype=short)
        )
    return found
