"""The feed-forward's activation in the epilogue of the products around it: of gate and up forward, of down's d-input backward.

Forward: a program owns BM rows and BN columns of which gate and up alternate, BN / 2 of each, so that one accumulator holds both and a thread
of the tensor cores has a gate beside its up. It splits them, rounds both as h is kept, and activates what it has rounded: h and y are
those of the two launches that this replaces, and h is not read again. Every column tile makes u of both parts, which is twice the low-rank work
of linear_fused.py; adapters of more than ``MAX_JOINED_RANK`` are left to the separate launches, as their u of both parts would not fit registers.

Backward: the tile of dy W + dU A, rounded as d-input is, meets the same tile of h, gate and up, and gives dh. The gradient of y is never written.

Both where choices.py says so, or where it knows of none, where linear.py would take the fused form; else the two ops one after the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..ops.activation import GATED, KINDS, _check_kind
from ..ops.slot_adapters import SlotAdapters
from . import choices, linear
from .activation import activation_backward, activation_forward, check_activation, gate_of, slope_of
from .common import Variant, dot, launch, next_power_of_2, variant, wait_for_previous
from .linear_fused import BF16, FP32, GROUP, MAX_RANK, d_input, pick, tile_of
from .tiles import grouped

MAX_JOINED_RANK = 32
A_THREAD = 32  # values of a gradient that a thread takes through the activation at a time
LARGEST = 128 * 128  # of a tile: beside its accumulator it holds u of two parts, or h
_GLU: tl.constexpr = tl.constexpr(KINDS.index("glu"))


@triton.jit(do_not_specialize=["streams", "T"])
def dynadapt_linear_activation_forward(
    x,
    w0,
    w1,
    bias,
    a,
    bt,
    slots,
    u,
    h,
    y,
    scale,
    streams,
    T,
    x_stride,
    a_stride,
    bt_stride,
    u_stride,
    K: tl.constexpr,
    F: tl.constexpr,
    RANK: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    KIND: tl.constexpr,
    HALVES: tl.constexpr,
):
    """HALVES: 2 where there are gate and up, 1 of an activation alone; u has HALVES RANK columns, h HALVES F."""
    wait_for_previous()
    COLUMNS: tl.constexpr = BN // HALVES
    WIDTH: tl.constexpr = HALVES * F
    EVEN: tl.constexpr = K % BK == 0
    blocks = tl.cdiv(T, BM)  # of one stream
    block, tile = grouped(tl.program_id(0), streams * blocks, (F + COLUMNS - 1) // COLUMNS, GROUP)
    stream = block // blocks
    within = (block % blocks) * BM
    row = stream.to(tl.int64) * T + within
    m = tl.arange(0, BM)
    n = tl.arange(0, BN)
    k = tl.arange(0, BK)
    part = n % HALVES
    column = tile * COLUMNS + n // HALVES
    m_read = tl.minimum(m, T - 1 - within)
    n_read = tl.minimum(column, F - 1).to(tl.int64)

    w_row = w0 + n_read * K
    if HALVES == 2:
        w_row = tl.where(part == 0, w_row, w1 + n_read * K)
    x_tile = x + row * x_stride + m_read[:, None] * x_stride + k[None, :]  # [BM, BK]
    w_tile = w_row[None, :] + k[:, None]  # [BK, BN], W^T
    acc = tl.zeros([BM, BN], tl.float32)
    if RANK > 0:
        slot = tl.load(slots + stream).to(tl.int64)
        r = tl.arange(0, HALVES * RP)
        place, live = r // RP * RANK + r % RP, r % RP < RANK
        a_tile = a + slot * a_stride + place[None, :] * K + k[:, None]  # [BK, HALVES RP], A^T
        low = tl.zeros([BM, HALVES * RP], tl.float32)
    for k0 in range(0, K, BK):
        inside = k < K - k0
        xs = tile_of(x_tile, inside[None, :], EVEN)
        acc = dot(xs, tile_of(w_tile, inside[:, None], EVEN), acc)
        if RANK > 0:
            low = dot(xs, tile_of(a_tile, inside[:, None] & live[None, :], EVEN and RP == RANK), low)
            a_tile += BK
        x_tile += BK
        w_tile += BK

    stored = (m < T - within)[:, None]
    if RANK > 0:
        rounded = low.to(h.dtype.element_ty)
        if tile == 0:
            tl.store(u + row * u_stride + m[:, None] * u_stride + place[None, :], rounded, mask=stored & live[None, :])
        scaled = (rounded.to(tl.float32) * scale).to(h.dtype.element_ty)
        # of gate's u the columns of gate alone, and of up's those of up: zeros add nothing to a sum
        if HALVES == 2 and bt.dtype.element_ty != tl.float32:  # read as they lie, put in turns here
            own, wide = tl.arange(0, RP), tile * COLUMNS + tl.arange(0, COLUMNS)
            b_tile = bt + slot * bt_stride + own[:, None] * WIDTH + wide[None, :]
            there = (own < RANK)[:, None] & (wide < F)[None, :]
            gate, up = tl.load(b_tile, mask=there, other=0.0), tl.load(b_tile + F, mask=there, other=0.0)
            none = tl.zeros_like(gate)
            of_gate, of_up = tl.reshape(tl.join(gate, none), [RP, BN]), tl.reshape(tl.join(none, up), [RP, BN])
            b = tl.reshape(tl.permute(tl.join(of_gate, of_up), (2, 0, 1)), [HALVES * RP, BN])
        else:
            half, own = r // RP, r % RP
            b_tile = bt + slot * bt_stride + own[:, None] * WIDTH + (part * F + column)[None, :]  # [HALVES RP, BN]
            b = tl.load(b_tile, mask=live[:, None] & (half[:, None] == part[None, :]) & (column < F)[None, :], other=0.0)
        acc = dot(scaled, b, acc)
    if bias is not None:
        acc += tl.load(bias + part * F + column, mask=column < F, other=0.0).to(tl.float32)[None, :]
    kept = acc.to(h.dtype.element_ty)
    c = tile * COLUMNS + tl.arange(0, COLUMNS)
    mask = stored & (c < F)[None, :]
    h_tile = h + row * WIDTH + m[:, None] * WIDTH + c[None, :]
    if HALVES == 2:
        first, second = tl.split(tl.reshape(kept, [BM, COLUMNS, 2]))
        tl.store(h_tile, first, mask=mask)
        tl.store(h_tile + F, second, mask=mask)
        value = first.to(tl.float32)
        out = gate_of(value, KIND) if KIND == _GLU else value * gate_of(value, KIND)
        out *= second.to(tl.float32)
    else:
        tl.store(h_tile, kept, mask=mask)
        value = kept.to(tl.float32)
        out = value * gate_of(value, KIND)
    tl.store(y + row * F + m[:, None] * F + c[None, :], out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def before_activation(g, rows, first, h, dh, y, F: tl.constexpr, KIND: tl.constexpr, HALVES: tl.constexpr, ELEMENTS: tl.constexpr):
    """The gradient of h from that of its activation, a tile g [X, Y] from column ``first`` on; ``rows``: where each begins in h, where in y, and
    which there are, each [X, 1]. At most ELEMENTS at a time, beside which h fits in registers: the tile is halved along its columns, which the
    tensor cores keep within a thread."""
    if g.shape[0] * g.shape[1] > ELEMENTS:
        HALF: tl.constexpr = g.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(g, [g.shape[0], 2, HALF]), (0, 2, 1)))
        before_activation(left, rows, first, h, dh, y, F, KIND, HALVES, ELEMENTS)
        before_activation(right, rows, first + HALF, h, dh, y, F, KIND, HALVES, ELEMENTS)
    else:
        in_h, in_y, live = rows
        n = first + tl.arange(0, g.shape[1])[None, :]
        mask = live & (n < F)
        g = g.to(dh.dtype.element_ty).to(tl.float32)
        x = tl.load(h + in_h + n, mask=mask, other=0.0).to(tl.float32)
        gate = gate_of(x, KIND)
        out = gate if KIND == _GLU else x * gate
        slope = slope_of(x, gate, KIND)
        if HALVES == 2:
            up = tl.load(h + in_h + F + n, mask=mask, other=0.0).to(tl.float32)
            tl.store(dh + in_h + F + n, (g * out).to(dh.dtype.element_ty), mask=mask)
            slope *= up
            out *= up
        tl.store(dh + in_h + n, (g * slope).to(dh.dtype.element_ty), mask=mask)
        if y is not None:
            tl.store(y + in_y + n, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["streams", "T"])
def dynadapt_linear_activation_backward(
    dy,
    w0,
    a,
    bt,
    slots,
    dU,
    h,
    dh,
    y,
    scale,
    streams,
    T,
    dy_stride,
    a_stride,
    bt_stride,
    dU_stride,
    F: tl.constexpr,
    O: tl.constexpr,
    RANK: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BO: tl.constexpr,
    GROUP: tl.constexpr,
    KIND: tl.constexpr,
    HALVES: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """y: the activation again, or None."""
    wait_for_previous()
    weights, adapter = (w0, w0, w0), (a, a_stride, bt, bt_stride)
    acc, row, rows, first = d_input(
        dy, weights, adapter, slots, dU, scale, streams, T, dy_stride, dU_stride, F, O, 0, 0, RANK, RP, BM, BN, BO, GROUP
    )
    m = tl.arange(0, BM)[:, None]
    before_activation(acc, (row * HALVES * F + m * (HALVES * F), row * F + m * F, m < rows), first, h, dh, y, F, KIND, HALVES, ELEMENTS)


def linear_activation_forward(x, parts, bias, A, Bt, slots, scale, kind, u, h, y) -> None:
    """See ``dynadapt.ops.linear_activation``. x and u may have padded rows; A and Bt may be strided over slots.

    Raises:
        ValueError: a shape or stride that does not fit.
    """
    halves, op = _halves(kind), "linear_activation_forward"
    if not _joins(op, x, parts, x.shape[1], h.shape[1], Bt, scale, halves, MAX_JOINED_RANK):
        linear.linear_forward(x, parts, bias, A, Bt, slots, scale, u, h)
        return activation_forward(h, kind, y)
    weights = linear.check(op, x, h, parts, A, Bt, slots, scale, u, forward=True)
    check_activation(op, kind, y, h, h, y)
    given = dict(x=x, w0=weights[0], w1=weights[-1], bias=bias, a=A, bt=Bt, slots=slots, u=u, h=h, y=y, scale=float(scale))
    return _launch(dynadapt_linear_activation_forward, given, x, x.shape[1], y.shape[1], halves, kind)


def linear_activation_backward(dy, parts, A, Bt, slots, scale, h, kind, dU, dx, dh, y) -> None:
    """See ``dynadapt.ops.linear_activation``. dy and dU may have padded rows; A and Bt may be strided over slots.

    Raises:
        ValueError: as ``linear_activation_forward``.
    """
    op = "linear_activation_backward"
    if not _joins(op, dy, parts, dx.shape[1], dy.shape[1], Bt, scale, 1, MAX_RANK):
        linear.linear_backward(dy, parts, A, Bt, slots, scale, dU, dx)
        return activation_backward(dx, h, kind, dh, y)
    weights = linear.check(op, dy, dx, parts, A, Bt, slots, scale, dU, forward=False)
    check_activation(op, kind, dx, h, h, dh, y)
    given = dict(dy=dy, w0=weights[0], a=A, bt=Bt, slots=slots, dU=dU, h=h, dh=dh, y=y, scale=float(scale))
    return _launch(dynadapt_linear_activation_backward, given, dy, dy.shape[1], dx.shape[1], _halves(kind), kind)


def reason(op: str) -> str:
    most = MAX_JOINED_RANK if op.endswith("forward") else MAX_RANK
    return f"Triton, one launch in the fused form and up to rank {most}: {choices.reason(op)}"


def _halves(kind: str) -> int:
    _check_kind(kind)
    return 2 if kind in GATED else 1


def _joins(op: str, rows, parts, k: int, o: int, Bt, scale, count: int, most: int) -> bool:
    """Whether one launch does it: ``count`` plain weights, no more than ``most`` ranks, and the fused form chosen; where the joined op was not
    measured, as for the linear alone."""
    if (
        hasattr(parts, "q_transposed")
        or len(parts) != count
        or (Bt is not None and not isinstance(scale, SlotAdapters) and Bt.shape[1] > most)
    ):
        return False
    alone = linear.form_of(op.replace("_activation", ""), rows, k, o, Bt, scale, len(parts))
    if isinstance(scale, (list, tuple, SlotAdapters)):
        return alone == "fused"
    return choices.choose(op, len(rows), k, o, 0 if Bt is None else Bt.shape[1], rows.dtype, alone) == "fused"


def _constexprs(kernel, tile, wide: int, F: int, rank: int, halves: int, kind: str) -> dict:
    """``wide``: columns of x, or of dy."""
    names = ("K", "BK") if kernel is dynadapt_linear_activation_forward else ("O", "BO")
    elements = {} if kernel is dynadapt_linear_activation_forward else {"ELEMENTS": A_THREAD * 32 * tile.warps}
    own = elements | {names[0]: wide, names[1]: tile.depth, "BM": tile.rows, "BN": tile.columns, "GROUP": GROUP}
    return dict(F=F, RANK=rank, RP=max(16, next_power_of_2(rank)), KIND=KINDS.index(kind), HALVES=halves, **own)


def _launch(kernel, given: dict, rows, wide: int, F: int, halves: int, kind: str) -> None:
    A, Bt = given["a"], given["bt"]
    streams, rank = (1, 0) if A is None else (len(given["slots"]), Bt.shape[1])
    if not len(rows):
        return
    columns = halves * F if kernel is dynadapt_linear_activation_forward else F
    T = len(rows) // streams
    tile = pick(rows.device, rows.element_size(), streams, T, [columns], LARGEST)
    strides = {f"{name}_stride": 0 if t is None else t.stride(0) for name, t in given.items() if name in ("x", "a", "bt", "u", "dy", "dU")}
    grid = (streams * triton.cdiv(T, tile.rows) * triton.cdiv(columns, tile.columns),)
    constexprs = _constexprs(kernel, tile, wide, F, rank, halves, kind)
    launch(kernel, grid, given | strides | dict(streams=streams, T=T), **constexprs, **tile.options)


SPILLS = {80: 16}  # bytes: two registers in one tile of an activation without a gate
_TYPES = dict.fromkeys(("x", "w0", "w1", "bias", "a", "bt", "u", "h", "y", "dy", "dU", "dh"), "*bf16") | {"slots": "*i32", "scale": "fp32"}


def _variants():
    for kernel, most in ((dynadapt_linear_activation_forward, MAX_JOINED_RANK), (dynadapt_linear_activation_backward, MAX_RANK)):
        absent = {"bias": None} if kernel is dynadapt_linear_activation_forward else {}
        again = [{"y": None}, {}] if kernel is dynadapt_linear_activation_backward else [{}]
        for arch, tiles in BF16.items():
            for tile in (tile for tile in tiles if tile.rows * tile.columns <= LARGEST):
                for rank, kind in ((16, "swiglu"), (most, "geglu_tanh"), (16, "gelu")):
                    for more in again if rank == 16 else again[:1]:
                        name = (
                            f"bf16 {tile.rows}x{tile.columns}x{tile.depth} rank {rank} {kind}{' and y' if again[1:] and not more else ''}"
                        )
                        fixed = _constexprs(kernel, tile, 576, 1536, rank, 2 if kind in GATED else 1, kind) | absent | more
                        yield variant(
                            name, kernel, _TYPES, fixed, tensor_core=True, archs=(arch,), spills=SPILLS.get(arch, 0), **tile.options
                        )
            fixed = _constexprs(kernel, FP32[0], 576, 1536, 16, 2, "swiglu") | absent
            yield variant("fp32", kernel, _TYPES, fixed, dtype="fp32", archs=(arch,), **FP32[0].options)


VARIANTS: list[Variant] = list(_variants())
