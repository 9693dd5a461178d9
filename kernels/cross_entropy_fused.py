"""Linear cross-entropy with the softmax inside the products: the other form of ``cross_entropy``.

1. ``logits``: one tile of h W^T a program; its epilogue takes the logits in base 2, l log2(e), and writes p = 2^(l - m) in the
   working dtype, m and sum p for each row of the tile in float32, and the logit of a target that lies in it. m is rounded up
   to an integer. Logits themselves are neither rounded nor stored.
2. ``score``: joins a row's tiles into lse and nll, and gives every tile a factor 2^(m - e), e an integer near the row's lse,
   every row a scale w 2^e / sum exp, and its target a coefficient w (softmax - 1); p at the target becomes 0.
3. ``hidden``: dh = scale * sum over tiles of (factor p) W + coefficient * W_target. The factor is a power of two, so that
   applying it between load and product rounds nothing; scale and coefficient meet the float32 sums. When the tiles of dh
   cannot fill the GPU, the vocabulary is split over programs and 4. ``sum`` adds their parts in order.

Three or four launches a chunk, 4 H V a row; beside the operands p is written once and read once (chunked: the logits are
written twice and read three times). The score alone stores no p: two launches, 2 H V. Not fused: 1 and 3 into one kernel,
which would have to carry a row's whole dh [H] through the vocabulary; registers hold 128 x 256 numbers, not 128 x 2,048.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import FUSION, INTERPRET, Variant, block, dot, launch, scratch, variant, wait_for_previous
from .row_chunks import chunks, padded_rows
from .tiles import generation, multiprocessors

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
_UPCAST: tl.constexpr = tl.constexpr(INTERPRET)  # the interpreter has no bfloat16 arithmetic
SCORE_ROWS = 8  # one 32-byte sector of tile_max [tiles, rows]
SUM_BLOCK = 1024


@triton.jit(do_not_specialize=["N"])
def dynadapt_cross_entropy_logits(
    h,
    w,
    targets,
    p,
    tile_max,
    tile_sum,
    target_logits,
    N,
    V,
    stride_h,
    width,
    most,
    H: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """p [N, width] or None; tile_max, tile_sum [width / BN, most]; target_logits [N] in base 2. Row blocks run fastest: W
    comes from memory once."""
    wait_for_previous()
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    tile = tl.program_id(1)
    first = tile * BN
    col = tl.arange(0, BN)
    k = tl.arange(0, BK)
    live = row < N
    # Rows beyond the end read the last one instead of being masked: nothing of them is stored.
    a = h + tl.minimum(row, N - 1).to(tl.int64)[:, None] * stride_h + k[None, :]
    b = w + first.to(tl.int64) * H + tl.minimum(col, V - 1 - first)[None, :] * H + k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, H, BK):
        if H % BK == 0:
            x, y = tl.load(a), tl.load(b)
        else:
            x = tl.load(a, mask=(start + k < H)[None, :], other=0.0)
            y = tl.load(b, mask=(start + k < H)[:, None], other=0.0)
        acc = dot(x, y, acc)  # [BM, BK] [BK, BN]
        a += BK
        b += BK
    acc = tl.where((first + col < V)[None, :], acc * LOG2E, float("-inf"))
    m = tl.ceil(tl.max(acc, 1))
    target = tl.load(targets + row, mask=live, other=-1) - first
    logit = tl.sum(tl.where(col[None, :] == target.to(tl.int32)[:, None], acc, 0.0), 1)
    tl.store(target_logits + row, logit, mask=live & (target >= 0) & (target < BN))
    e = tl.exp2(acc - m[:, None])
    tl.store(tile_max + tile * most + row, m, mask=live)
    tl.store(tile_sum + tile * most + row, tl.sum(e, 1), mask=live)
    if p is not None:
        tl.store(p + row[:, None] * width + first + col[None, :], e.to(p.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["N"])
def dynadapt_cross_entropy_score(
    tile_max,
    tile_sum,
    target_logits,
    targets,
    weights,
    nll,
    lse,
    p,
    factor,
    scale,
    coefficient,
    N,
    width,
    most,
    tiles,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """nll, lse [N] from the tiles; with p [N, width]: factor [tiles, most], scale and coefficient [most], p at the target."""
    wait_for_previous()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < N
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    s = tl.zeros((ROWS,), tl.float32)
    for start in range(0, tiles, TILES):
        t = start + tl.arange(0, TILES)
        at, mask = t[:, None] * most + row[None, :], (t < tiles)[:, None] & live[None, :]
        m = tl.load(tile_max + at, mask=mask, other=float("-inf"))  # [TILES, ROWS]
        new = tl.where(live, tl.maximum(top, tl.max(m, 0)), 0.0)
        s = s * tl.exp2(top - new) + tl.sum(tl.load(tile_sum + at, mask=mask, other=0.0) * tl.exp2(m - new[None, :]), 0)
        top = new
    log_sum = tl.log2(s)
    target = tl.load(targets + row, mask=live, other=-1)
    scored = target >= 0
    above = tl.load(target_logits + row, mask=scored, other=0.0) - top  # the target's logit over the largest tile's m
    tl.store(lse + row, (top + log_sum) * LN2, mask=live)
    tl.store(nll + row, tl.where(scored, (log_sum - above) * LN2, 0.0), mask=live)
    if p is not None:
        e = tl.ceil(log_sum)  # over top
        weight = tl.where(scored, 1.0, 0.0)
        if weights is not None:
            weight = tl.load(weights + row, mask=scored, other=0.0)
        tl.store(scale + row, tl.where(scored, weight * tl.exp2(e) / s, 0.0), mask=live)
        tl.store(coefficient + row, tl.where(scored, weight * (tl.exp2(above) / s - 1.0), 0.0), mask=live)
        tl.store(p + row.to(tl.int64) * width + target, tl.zeros((ROWS,), p.dtype.element_ty), mask=scored)
        for start in range(0, tiles, TILES):
            t = start + tl.arange(0, TILES)
            at, mask = t[:, None] * most + row[None, :], (t < tiles)[:, None] & live[None, :]
            m = tl.load(tile_max + at, mask=mask, other=0.0)
            tl.store(factor + at, tl.exp2(m - (top + e)[None, :]), mask=mask)


@triton.jit(do_not_specialize=["N"])
def dynadapt_cross_entropy_hidden(
    p,
    factor,
    scale,
    coefficient,
    targets,
    w,
    out,
    N,
    V,
    width,
    most,
    stride_out,
    stride_part,
    span,
    H: tl.constexpr,
    TILE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out [N, H], or float32 parts of it, one for each ``span`` columns of the vocabulary."""
    wait_for_previous()
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    col = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(2) * span
    k = tl.arange(0, BK)
    live = row < N
    safe = tl.minimum(row, N - 1)
    a = p + safe[:, None] * width + first + k[None, :]
    b = w + first.to(tl.int64) * H + k[:, None] * H + col[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(first, tl.minimum(first + span, width), BK):
        f = tl.load(factor + (start // TILE) * most + safe)
        x = tl.load(a)
        if _UPCAST:
            x = x.to(tl.float32)
        x = x * f.to(x.dtype)[:, None]
        y = tl.load(b, mask=(start + k < V)[:, None] & (col < H)[None, :], other=0.0)
        acc = dot(x, y, acc)  # [BM, BK] [BK, BN]
        a += BK
        b += BK * H
    s = tl.load(scale + safe)
    acc = tl.where((s != 0)[:, None], acc * s[:, None], 0.0)  # a row that is not scored may hold anything
    target = tl.load(targets + safe)
    if tl.program_id(2) == 0:
        known = (target >= 0)[:, None] & (col < H)[None, :]
        y = tl.load(w + tl.maximum(target, 0)[:, None] * H + col[None, :], mask=known, other=0.0)
        acc += tl.load(coefficient + safe)[:, None] * y.to(tl.float32)
    out += tl.program_id(2).to(tl.int64) * stride_part
    tl.store(
        out + row.to(tl.int64)[:, None] * stride_out + col[None, :], acc.to(out.dtype.element_ty), mask=live[:, None] & (col < H)[None, :]
    )


@triton.jit(do_not_specialize=["count"])
def dynadapt_cross_entropy_sum(parts, dh, count, stride_part, stride_dh, H: tl.constexpr, BLOCK: tl.constexpr):
    """dh [N, H] = the sum of parts [count, most, H], first to last."""
    wait_for_previous()
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(count):
        acc += tl.load(parts + i * stride_part + row * H + col, mask=col < H, other=0.0)
    tl.store(dh + row * stride_dh + col, acc.to(dh.dtype.element_ty), mask=col < H)


def logits_config(dtype: torch.dtype, H: int) -> dict:
    """128 sums a thread. A long product takes 128 x 256 tiles, the best ratio of arithmetic to shared memory; a short one
    128 x 128, of which two fit a multiprocessor, so that one's exponentials overlap the other's products. float32
    multiplies without tensor cores: small tiles."""
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 16, "num_warps": 8, "num_stages": 2}
    if H >= 1024:
        return {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3}
    return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3}


def hidden_config(dtype: torch.dtype, H: int, arch: int) -> dict:
    """Wide tiles where the hidden size fills them and p, which passes through registers, leaves room (not on sm_80)."""
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 16, "num_warps": 8, "num_stages": 2}
    wide = H >= 1024 and arch >= 90
    return {"BM": 128, "BN": 256 if wide else 128, "BK": 64, "num_warps": 8, "num_stages": 3}


def splits(tiles: int, vocabulary_tiles: int, programs: int) -> int:
    """Into how many parts the vocabulary is split so that ``tiles`` output tiles fill whole waves of ``programs`` to 85%."""
    waves = {s: tiles * s / programs for s in range(1, max(1, min(16, vocabulary_tiles // 4)) + 1)}
    full = {s: w / -(-w // 1) for s, w in waves.items()}
    return next((s for s, share in full.items() if share >= 0.85), max(full, key=full.get))


def cross_entropy_fused(h, head, targets, weights, nll, lse, dh, softcap=None) -> None:
    """``cross_entropy`` with the softmax in the products' epilogue and prologue, which caps no logits."""
    if softcap is not None:
        raise ValueError(f"cross_entropy_fused: softcap={softcap!r}, accepted is None; cross_entropy_chunked caps")
    tile = logits_config(h.dtype, h.shape[1])["BN"]
    width = triton.cdiv(head.weight.shape[0], tile) * tile
    for lo, hi in chunks(h, width):
        _chunk(
            h[lo:hi],
            head.weight,
            targets[lo:hi],
            None if weights is None else weights[lo:hi],
            nll[lo:hi],
            lse[lo:hi],
            None if dh is None else dh[lo:hi],
            width,
            padded_rows(h, width),
        )


def _chunk(h, weight, targets, weights, nll, lse, dh, width: int, most: int) -> None:
    (N, H), V = h.shape, weight.shape[0]
    config = logits_config(h.dtype, H)
    tile = config["BN"]
    tiles = width // tile
    p = None if dh is None else scratch(h.device, "cross_entropy logits", most, width, dtype=h.dtype)
    tile_max, tile_sum, factor = scratch(h.device, "cross_entropy tiles", 3, tiles, most)
    target_logits, scale, coefficient = scratch(h.device, "cross_entropy targets", 3, most)
    given = dict(h=h, w=weight, targets=targets, weights=weights, nll=nll, lse=lse, p=p, tile_max=tile_max, tile_sum=tile_sum)
    given |= dict(target_logits=target_logits, factor=factor, scale=scale, coefficient=coefficient)
    given |= dict(N=N, V=V, H=H, stride_h=h.stride(0), width=width, most=most, tiles=tiles)
    launch(dynadapt_cross_entropy_logits, (triton.cdiv(N, config["BM"]), tiles), given, **config)
    grid = (triton.cdiv(N, SCORE_ROWS),)
    launch(dynadapt_cross_entropy_score, grid, given, ROWS=SCORE_ROWS, TILES=block(tiles, 512), num_warps=4)
    if dh is not None:
        _hidden(given, dh, tile)


def _hidden(given: dict, dh, tile: int) -> None:
    """dh from p, factor, scale and coefficient among ``given``, what the launches of a chunk take."""
    (N, H), most, width = dh.shape, given["most"], given["width"]
    config = hidden_config(dh.dtype, H, generation(dh.device))
    rows, cols, tiles = triton.cdiv(N, config["BM"]), triton.cdiv(H, config["BN"]), width // tile
    count = splits(rows * cols, tiles, multiprocessors(dh.device))
    span = triton.cdiv(tiles, count) * tile
    count = triton.cdiv(width, span)
    out = dh if count == 1 else scratch(dh.device, "cross_entropy parts", count, most, H)
    target = dict(out=out, stride_out=out.stride(-2), stride_part=most * H, span=span, TILE=tile)
    launch(dynadapt_cross_entropy_hidden, (rows, cols, count), given, **target, **config)
    if count > 1:
        size = block(H, SUM_BLOCK)
        dynadapt_cross_entropy_sum[(N, triton.cdiv(H, size))](out, dh, count, most * H, dh.stride(0), H, size, num_warps=4, **FUSION)


_TYPES = {
    **dict.fromkeys(("h", "w", "p", "out", "dh"), "*bf16"),
    "targets": "*i64",
    **dict.fromkeys(("tile_max", "tile_sum", "target_logits", "weights", "nll", "lse", "factor", "scale", "coefficient", "parts"), "*fp32"),
}


def _variants():
    compiled = lambda name, kernel, constexprs, types=_TYPES, **more: variant(  # noqa: E731
        name, kernel, types, constexprs, loose=("tiles",), **more
    )
    launched = lambda c: {n: c.pop(n) for n in ("num_warps", "num_stages")}  # noqa: E731
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for H in (576, 2048):
            config = logits_config(dtype, H)
            options = {**launched(config), "dtype": name, "tensor_core": name == "bf16"}
            yield compiled(f"{name} H={H}", dynadapt_cross_entropy_logits, {"H": H, **config}, **options)
            yield compiled(f"{name} H={H} score alone", dynadapt_cross_entropy_logits, {"H": H, "p": None, **config}, **options)
        for H, archs in ((576, (80, 90, 100)), (2048, (80,)), (2048, (90, 100))):
            config = hidden_config(dtype, H, archs[-1])
            options = {**launched(config), "dtype": name, "tensor_core": name == "bf16", "archs": archs}
            constants = {"H": H, "TILE": logits_config(dtype, H)["BN"], **config}
            yield compiled(f"{name} H={H}", dynadapt_cross_entropy_hidden, constants, **options)
            yield compiled(f"{name} H={H} parts", dynadapt_cross_entropy_hidden, constants, {**_TYPES, "out": "*fp32"}, **options)
    yield compiled("bf16", dynadapt_cross_entropy_score, {"ROWS": SCORE_ROWS, "TILES": 512})
    yield compiled("bf16 H=2048", dynadapt_cross_entropy_sum, {"H": 2048, "BLOCK": SUM_BLOCK}, registers=64)


VARIANTS: list[Variant] = list(_variants())
