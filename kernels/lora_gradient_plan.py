"""How a call of the adapters' gradient is checked and cut into programs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton

from dynadapt.ops.linear import each_part

from . import epilogue
from .common import block, scratch
from .tiles import three

SMS = 132  # multiprocessors of an H200; with fewer programs than this the tokens are split
CHUNK = 512  # tokens of one partial sum
SUM_BLOCK = 1024
MAX_PARTS = 3
LENGTHS = ("T", "streams", "chunks")  # vary from call to call: never a reason to compile again


@dataclass(frozen=True)
class Plan:
    """Sizes of one call and how it is cut into programs."""

    streams: int
    T: int
    sizes: tuple[int, int, int]
    constexprs: dict
    options: dict

    @property
    def chunks(self) -> int:
        return max(1, triton.cdiv(self.T, self.constexprs["CHUNK"]))

    @property
    def elements(self) -> tuple[int, int]:
        """Values of one stream's dA and dBt."""
        c = self.constexprs
        return c["W"] * c["K"], c["R"] * sum(self.sizes)

    @property
    def programs(self) -> int:
        c = self.constexprs
        columns = sum(triton.cdiv(size, c["BC"]) for size in self.sizes)
        return triton.cdiv(c["W"], c["BRA"]) * triton.cdiv(c["K"], c["BC"]) + triton.cdiv(c["R"], c["BRB"]) * columns

    @property
    def split(self) -> bool:
        return self.chunks > 1 and self.streams * self.programs < SMS

    @property
    def sum_grid(self) -> tuple[int, int]:
        return sum(triton.cdiv(n, SUM_BLOCK) for n in self.elements), self.streams


def plan(dtype: torch.dtype, streams: int, T: int, K: int, part_sizes, ranks, equal: bool = True, most: int | None = None) -> Plan:
    """bfloat16: 128 columns where that gives every multiprocessor two programs, else 64; float32 (no tensor cores):
    small tiles that fit in registers. ``ranks``: every part's, or each one's; ``equal``: so are their scales; ``most``: rows of Bt."""
    sizes = three(part_sizes)
    ranks = [ranks] * len(part_sizes) if isinstance(ranks, int) else ranks
    width, rank = sum(ranks), max(ranks) if most is None else most
    wide = dtype == torch.bfloat16
    rows = 128 if wide else 32
    own = dict(zip(("R0", "R1", "R2"), three(ranks)), EQUAL=equal)
    constexprs = dict(K=K, R=rank, **own, W=width, BRA=block(width, rows), BRB=block(rank, rows), BC=64, BT=64 if wide else 16, CHUNK=CHUNK)
    if wide and streams * (triton.cdiv(K, 128) + sum(triton.cdiv(size, 128) for size in sizes)) >= 2 * SMS:
        constexprs["BC"] = 128
    warps = 8 if constexprs["BC"] * constexprs["BRA"] > 64 * 64 else 4
    return Plan(streams, T, sizes, constexprs, dict(num_warps=warps, num_stages=3 if wide else 2))


def checked_plan(op: str, dy, x, u, dU, part_sizes, scale, slots, a, bt) -> Plan:
    """The plan of a call whose adapter tensors are ``a`` [slots, sum R_p, K] and ``bt`` [slots, R, O], packed within a slot."""
    (n, out), k, rank, streams = dy.shape, x.shape[1], bt.shape[1], slots.shape[0]
    ranks = [own for _, _, own, _ in each_part(scale, part_sizes, rank)]
    width = sum(ranks)
    if not 1 <= len(part_sizes) <= MAX_PARTS:
        raise ValueError(f"{op}: part_sizes has {len(part_sizes)} entries, accepted is 1 to {MAX_PARTS}")
    if sum(part_sizes) != out:
        raise ValueError(f"{op}: part_sizes add up to {sum(part_sizes)}, accepted is the width of dy, {out}")
    if streams == 0 or n % streams:
        raise ValueError(f"{op}: slots has {streams} entries for {n} rows, accepted is a divisor")
    for name, tensor, shape in (
        ("x", x, (n, k)),
        ("u", u, (n, width)),
        ("dU", dU, (n, width)),
        ("a", a, (a.shape[0], width, k)),
        ("bt", bt, (a.shape[0], rank, out)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, accepted is {list(shape)}")
    for name, tensor in (("dy", dy), ("x", x), ("u", u), ("dU", dU)):
        if tensor.stride(1) != 1:
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}, accepted is 1 along its columns")
    for name, tensor in (("a", a), ("bt", bt)):
        if tensor.stride(2) != 1 or name == "a" and tensor.stride(1) != k:
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}, accepted is packed within a slot")
    return plan(dy.dtype, streams, n // streams, k, part_sizes, ranks, not isinstance(scale, (list, tuple)), rank)


def family(p: Plan, dy, x, u, dU, scale, slots) -> dict:
    """What the launches of a call take, by name."""
    strides = dict(dy_stride=dy.stride(0), x_stride=x.stride(0), u_stride=u.stride(0), dU_stride=dU.stride(0))
    lengths = dict(T=p.T, streams=p.streams, chunks=p.chunks)
    sizes = dict(zip(("O0", "O1", "O2", "size_a", "size_b"), (*p.sizes, *p.elements)))
    scales = [pair[1] for pair in scale] if isinstance(scale, (list, tuple)) else [scale]
    own = dict(zip(("scale0", "scale1", "scale2"), map(float, three(scales))))
    return dict(dy=dy, x=x, u=u, dU=dU, slots=slots, **own, **lengths, **strides, **sizes, **p.constexprs)


def by_threes(scale, part_sizes, rank: int):
    """(rows of u and A, columns of dy and Bt, sizes, scale) of each three parts: as many as a launch takes."""
    parts, three_of = list(each_part(scale, part_sizes, rank)), MAX_PARTS
    for lo in range(0, len(parts), three_of):
        own = parts[lo : lo + three_of]
        rows, columns = (slice(own[0][i].start, own[-1][i].stop) for i in (0, 1))
        scales = scale[lo : lo + three_of] if isinstance(scale, (list, tuple)) else scale
        yield rows, columns, list(part_sizes[lo : lo + three_of]), scales


def cut(state, view):
    """The state of some of a stream's rows or columns."""
    return replace(state, **{n: view(getattr(state, n)) for n in (*epilogue.STATE, "working") if getattr(state, n) is not None})


def chunk_buffer(p: Plan, device) -> torch.Tensor:
    """Scratch [chunks S (P R K + R O)], by powers of two so that lengths share it."""
    return scratch(device, "lora gradient chunks", block(p.chunks * p.streams * sum(p.elements), 1 << 62))


TYPES = {
    **dict.fromkeys(("dy", "x", "u", "dU", "a_working", "b_working"), "*bf16"),
    **dict.fromkeys(("dA", "dBt", "partial"), "*fp32"),
    **{f"{prefix}_{name}": "*fp32" for prefix in "ab" for name in epilogue.STATE},
    **{"slots": "*i32", "moving": "*i32", **dict.fromkeys(("scale0", "scale1", "scale2"), "fp32")},
    **epilogue.TYPES,
}
SHAPES = {  # streams, K, parts, rank
    "one stream r16": (1, 2048, (2048, 512, 512), 16),
    "64 streams r16": (64, 2048, (2048, 512, 512), 16),
    "64 streams r64": (64, 4096, (14336, 14336), 64),
    "64 streams r128": (64, 4096, (4096, 1024, 1024), 128),
}
