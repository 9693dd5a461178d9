"""Linear layer and its low-rank adapter in one launch, forward and backward.

Forward: a program owns BM rows of one stream and BN columns of one part. Its loop over K multiplies each x tile by both
W and the stream's A, so that u = x A^T costs no second read of x; then u, rounded to the working dtype, is multiplied by
Bt onto the same accumulator, bias is added, and y is written once. Backward is the mirror image: the loop over each
part's O makes dy W and dy Bt^T from the same dy tile, then dU A goes onto the accumulator.

Traffic: the base product's (x, W, y once, tiles of them again from L2), A and Bt of each stream, and u. Every column tile
makes its own u, which is R / BN more multiplications than needed (6% at R 16, BN 256) and is why ``choices`` measures
this form against "split". Not fused: gradients of A and Bt, which contract over rows (lora_gradient.py).

Row blocks end where a stream ends. Rows and columns behind the end read the last valid one (never stored), because a
clamped index needs no mask in the loop; only the contracted side is masked, and only where its length is no multiple.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from .common import Variant, dot, launch, next_power_of_2, variant, wait_for_previous
from .tiles import generation, grouped, locate, multiprocessors, part_columns, three

MAX_RANK = 64  # u of a tile stays in registers: BM RP / threads


@triton.jit
def tile_of(pointers, inside, EVEN: tl.constexpr):
    """Load with a mask only where one is needed."""
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["streams", "T"])
def dynadapt_linear_forward(
    x,
    w0,
    w1,
    w2,
    bias,
    a,
    bt,
    slots,
    u,
    y,
    scale,
    streams,
    T,
    x_stride,
    a_stride,
    bt_stride,
    u_stride,
    y_stride,
    K: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    RANK: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    wait_for_previous()
    TILES: tl.constexpr = (O0 + BN - 1) // BN + (O1 + BN - 1) // BN + (O2 + BN - 1) // BN
    EVEN: tl.constexpr = K % BK == 0
    blocks = tl.cdiv(T, BM)  # of one stream
    block, tile = grouped(tl.program_id(0), streams * blocks, TILES, GROUP)
    part, start, size, first = locate(tile, O0, O1, O2, BN)
    stream = block // blocks
    within = (block % blocks) * BM
    row = stream.to(tl.int64) * T + within  # of the tile's first row, int64: N O may pass 2^31
    m = tl.arange(0, BM)
    n = tl.arange(0, BN)
    k = tl.arange(0, BK)
    r = tl.arange(0, RP)
    m_read = tl.minimum(m, T - 1 - within)
    n_read = tl.minimum(n, size - 1 - first)

    w = w0
    if part == 1:
        w = w1
    if part == 2:
        w = w2
    x_tile = x + row * x_stride + m_read[:, None] * x_stride + k[None, :]  # [BM, BK]
    w_tile = w + first.to(tl.int64) * K + n_read[None, :] * K + k[:, None]  # [BK, BN], W^T
    acc = tl.zeros([BM, BN], tl.float32)
    if RANK > 0:
        slot = tl.load(slots + stream).to(tl.int64)
        a_tile = a + slot * a_stride + (part * RANK + r[None, :]) * K + k[:, None]  # [BK, RP], A^T
        low = tl.zeros([BM, RP], tl.float32)
    for k0 in range(0, K, BK):
        inside = k < K - k0
        xs = tile_of(x_tile, inside[None, :], EVEN)
        acc = dot(xs, tile_of(w_tile, inside[:, None], EVEN), acc)
        if RANK > 0:
            low = dot(xs, tile_of(a_tile, inside[:, None] & (r < RANK)[None, :], EVEN and RP == RANK), low)
            a_tile += BK
        x_tile += BK
        w_tile += BK

    stored = (m < T - within)[:, None]
    columns = first + n < size
    if RANK > 0:
        rounded = low.to(y.dtype.element_ty)
        if first == 0:
            tl.store(u + row * u_stride + m[:, None] * u_stride + part * RANK + r[None, :], rounded, mask=stored & (r < RANK)[None, :])
        scaled = (rounded.to(tl.float32) * scale).to(y.dtype.element_ty)
        b_tile = bt + slot * bt_stride + r[:, None] * (O0 + O1 + O2) + (start + first) + n[None, :]  # [RP, BN]
        acc = dot(scaled, tl.load(b_tile, mask=(r < RANK)[:, None] & columns[None, :], other=0.0), acc)
    if bias is not None:
        acc += tl.load(bias + start + first + n, mask=columns, other=0.0).to(tl.float32)[None, :]
    y_tile = y + row * y_stride + m[:, None] * y_stride + (start + first) + n[None, :]
    tl.store(y_tile, acc.to(y.dtype.element_ty), mask=stored & columns[None, :])


@triton.jit
def d_input(
    dy,
    weights,
    adapter,
    slots,
    dU,
    scale,
    streams,
    T,
    dy_stride,
    dU_stride,
    K: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    RANK: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BO: tl.constexpr,
    GROUP: tl.constexpr,
):
    """(dy W + dU A [BM, BN] of this program, the first row of its tile, how many rows it has, its columns); dU on the way. ``weights``: of three
    parts; ``adapter``: (A, its stride between slots, Bt, its stride)."""
    w0, w1, w2 = weights
    a, a_stride, bt, bt_stride = adapter
    TOTAL: tl.constexpr = O0 + O1 + O2
    PARTS: tl.constexpr = 1 + (1 if O1 > 0 else 0) + (1 if O2 > 0 else 0)
    EVEN: tl.constexpr = (O0 % BO == 0) and (O1 % BO == 0) and (O2 % BO == 0)
    blocks = tl.cdiv(T, BM)
    block, tile = grouped(tl.program_id(0), streams * blocks, (K + BN - 1) // BN, GROUP)
    stream = block // blocks
    within = (block % blocks) * BM
    row = stream.to(tl.int64) * T + within
    m = tl.arange(0, BM)
    n = tile * BN + tl.arange(0, BN)
    o = tl.arange(0, BO)
    r = tl.arange(0, RP)
    m_read = tl.minimum(m, T - 1 - within)
    columns = n < K
    if RANK > 0:
        slot = tl.load(slots + stream).to(tl.int64)

    acc = tl.zeros([BM, BN], tl.float32)
    for part in range(PARTS):
        start, size = part_columns(part, O0, O1, O2)
        w = w0
        if part == 1:
            w = w1
        if part == 2:
            w = w2
        dy_tile = dy + row * dy_stride + start + m_read[:, None] * dy_stride + o[None, :]  # [BM, BO]
        w_tile = w + o[:, None] * K + n[None, :]  # [BO, BN]
        if RANK > 0:
            bt_tile = bt + slot * bt_stride + start + r[None, :] * TOTAL + o[:, None]  # [BO, RP], Bt^T
            low = tl.zeros([BM, RP], tl.float32)
        for o0 in range(0, size, BO):
            inside = o < size - o0
            d = tile_of(dy_tile, inside[None, :], EVEN)
            acc = dot(d, tile_of(w_tile, inside[:, None] & columns[None, :], EVEN and K % BN == 0), acc)
            if RANK > 0:
                low = dot(d, tile_of(bt_tile, inside[:, None] & (r < RANK)[None, :], EVEN and RP == RANK), low)
                bt_tile += BO
            dy_tile += BO
            w_tile += BO * K
        if RANK > 0:
            rounded = (low * scale).to(dy.dtype.element_ty)
            if tile == 0:
                tl.store(
                    dU + row * dU_stride + m[:, None] * dU_stride + part * RANK + r[None, :],
                    rounded,
                    mask=(m < T - within)[:, None] & (r < RANK)[None, :],
                )
            a_tile = a + slot * a_stride + (part * RANK + r[:, None]) * K + n[None, :]  # [RP, BN]
            acc = dot(rounded, tile_of(a_tile, (r < RANK)[:, None] & columns[None, :], RP == RANK and K % BN == 0), acc)
    return acc, row, T - within, tile * BN


@triton.jit(do_not_specialize=["streams", "T"])
def dynadapt_linear_backward(
    dy,
    w0,
    w1,
    w2,
    a,
    bt,
    slots,
    dU,
    dx,
    scale,
    streams,
    T,
    dy_stride,
    a_stride,
    bt_stride,
    dU_stride,
    dx_stride,
    K: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    RANK: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BO: tl.constexpr,
    GROUP: tl.constexpr,
):
    wait_for_previous()
    weights, adapter = (w0, w1, w2), (a, a_stride, bt, bt_stride)
    acc, row, rows, first = d_input(
        dy, weights, adapter, slots, dU, scale, streams, T, dy_stride, dU_stride, K, O0, O1, O2, RANK, RP, BM, BN, BO, GROUP
    )
    m = tl.arange(0, BM)
    n = first + tl.arange(0, BN)
    dx_tile = dx + row * dx_stride + m[:, None] * dx_stride + n[None, :]
    tl.store(dx_tile, acc.to(dx.dtype.element_ty), mask=(m < rows)[:, None] & (n < K)[None, :])


@dataclass(frozen=True)
class Tile:
    """Rows, columns and contracted length of one step of a program. ``speed``: assumed multiplications per
    multiprocessor and second, relative to the largest tile; it only ranks tiles."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    speed: float

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


# Hopper: 128 x 256 is the largest accumulator that 8 warps hold (128 of 255 registers a thread); it reads least per
# multiplication. The smaller ones are for calls with too few tiles to fill the GPU. wgmma takes 64 rows a group of 4 warps. Speeds
# are those with which ``pick`` loses least, 2% on average, of 24 groups and sizes measured on an H200 (135M at 512 and 4,096 rows, 1B at 512).
# Blackwell keeps accumulators in tensor memory, where 128 x 256 leaves no room for the low-rank one. Ampere's
# multiplications read their operands through registers, hence smaller tiles. float32 without TF32 runs on the plain cores.
HOPPER = (
    Tile(128, 256, 64, 8, 3, 1.0),
    Tile(128, 128, 64, 8, 4, 0.9),
    Tile(64, 128, 64, 4, 4, 0.7),
    Tile(128, 64, 64, 8, 4, 0.7),
    Tile(64, 64, 64, 4, 4, 0.65),
)
# In the place of Hopper's last: where a multiprocessor has one program, more loads on the way are faster.
ALONE = Tile(64, 64, 64, 4, 6, 0.65)
BLACKWELL = (Tile(128, 128, 64, 8, 4, 0.85), Tile(64, 128, 64, 4, 4, 0.65), Tile(64, 64, 64, 4, 4, 0.45))
AMPERE = (Tile(128, 128, 32, 8, 4, 1.0), Tile(64, 128, 32, 8, 4, 0.8), Tile(64, 64, 64, 4, 3, 0.6))
BF16 = {80: AMPERE, 90: HOPPER, 100: BLACKWELL}
FP32 = (Tile(64, 64, 32, 8, 3, 1.0),)
GROUP = 8


def pick(device, itemsize: int, streams: int, T: int, widths, largest: int = 128 * 256) -> Tile:
    """The tile that finishes first if programs run in waves, one a multiprocessor; ``widths``: columns of each part; ``largest``: the most rows
    times columns."""
    processors = multiprocessors(device)

    def programs(tile):
        return streams * -(-T // tile.rows) * sum(-(-w // tile.columns) for w in widths)

    def cost(tile):
        return -(-programs(tile) // processors) * tile.rows * tile.columns / tile.speed

    tiles = BF16[generation(device)] if itemsize == 2 else FP32
    best = min((tile for tile in tiles if tile.rows * tile.columns <= largest), key=cost)
    return ALONE if best is HOPPER[-1] and programs(best) <= processors else best


def _names(kernel) -> tuple[str, str, str, str]:
    """What a kernel calls its input, its rank-sized and its wide output, and the contracted length of a step."""
    return ("x", "u", "y", "BK") if kernel is dynadapt_linear_forward else ("dy", "dU", "dx", "BO")


def _constexprs(kernel, tile: Tile, K: int, sizes, rank: int) -> dict:
    """By name; the low-rank dimension is padded to what a dot product takes."""
    tiles = {"BM": tile.rows, "BN": tile.columns, _names(kernel)[3]: tile.depth, "GROUP": GROUP}
    return dict(zip(("O0", "O1", "O2"), three(sizes)), K=K, RANK=rank, RP=max(16, next_power_of_2(rank)), **tiles)


def _launch(kernel, rows, weights, columns, A, Bt, slots, scale, low, out, bias=None) -> None:
    """rows [N, any] -> out [N, sum of ``columns``, those of each tiled part], and low [N, P R] on the way."""
    wide, rank_sized, written, _ = _names(kernel)
    streams, rank = (1, 0) if A is None else (len(slots), Bt.shape[1])
    T = len(rows) // streams
    tile = pick(rows.device, rows.element_size(), streams, T, columns)
    tensors = dict(zip(("w0", "w1", "w2"), three(weights, weights[0])))
    tensors |= {wide: rows, "a": A, "bt": Bt, rank_sized: low, written: out}
    strides = {f"{name}_stride": 0 if t is None else t.stride(0) for name, t in tensors.items()}
    given = tensors | strides | dict(bias=bias, slots=slots, scale=float(scale), streams=streams, T=T)
    grid = (streams * triton.cdiv(T, tile.rows) * sum(triton.cdiv(c, tile.columns) for c in columns),)
    constexprs = _constexprs(kernel, tile, weights[0].shape[1], [w.shape[0] for w in weights], rank)
    launch(kernel, grid, given, **constexprs, **tile.options)


def launch_forward(x, weights, bias, A, Bt, slots, scale, u, y) -> None:
    _launch(dynadapt_linear_forward, x, weights, [w.shape[0] for w in weights], A, Bt, slots, scale, u, y, bias)


def launch_backward(dy, weights, A, Bt, slots, scale, dU, dx) -> None:
    _launch(dynadapt_linear_backward, dy, weights, [dx.shape[1]], A, Bt, slots, scale, dU, dx)


_TYPES = dict.fromkeys(("x", "u", "y", "dy", "dU", "dx", "w0", "w1", "w2", "a", "bt", "bias"), "*bf16")
_TYPES |= {"slots": "*i32", "scale": "fp32"}


def _variant(kernel, arch: int, tile: Tile, dtype: str, sizes, K: int, rank: int) -> Variant:
    constexprs = _constexprs(kernel, tile, K, sizes, rank)
    if rank == 0:
        constexprs |= dict.fromkeys(("a", "bt", "slots", _names(kernel)[1]))
    name = f"{dtype} {tile.rows}x{tile.columns}x{tile.depth}{', 6 stages' if tile is ALONE else ''} rank {rank} parts {len(sizes)}"
    options = dict(dtype=dtype, tensor_core=dtype == "bf16", archs=(arch,), **tile.options)
    return variant(name, kernel, _TYPES, constexprs, **options)


def _variants():
    for kernel in (dynadapt_linear_forward, dynadapt_linear_backward):
        for arch, tiles in BF16.items():
            for tile in (*tiles, *([ALONE] if arch == 90 else [])):
                yield _variant(kernel, arch, tile, "bf16", (2048, 512, 512), 2048, 16)
            yield _variant(kernel, arch, tiles[0], "bf16", (14336, 14336), 4096, MAX_RANK)
            yield _variant(kernel, arch, FP32[0], "fp32", (576, 192, 192), 576, 16)
        yield _variant(kernel, 90, HOPPER[0], "bf16", (4096,), 14336, 0)


VARIANTS = list(_variants())
