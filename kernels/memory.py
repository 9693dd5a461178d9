"""Segment memory takes in a segment: every layer, stream and store in one launch, in place.

Traffic: each row that changes is read once and written once, 2 bytes per byte of the window when it is full; no FLOPs.

Row j of the full window receives row j + shift of [old; new]. So rows j, j + shift, j + 2 shift, ... form a chain in
which each row is read just before it is overwritten, and chains touch no row of one another. A program owns whole
chains (a block of neighbouring ones) and walks them upward; the thread that stores a row has loaded it a step earlier, so
neither barriers nor a second copy of the window are needed. When every moving row comes from the segment, as with a
memory no longer than the segment, nothing depends on anything and all chains have length one.

Not fused: the fill counts, because every program reads them (``memory_fill``, one small launch after the last layer).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import FUSION, Variant, block, variant, wait_for_previous

# A tile of 4096 elements gives 128 threads four 16-byte loads of bfloat16 in flight each.
TILE = 4096
# Enough programs to fill 132 SMs several times over; beyond that, programs take more chains each.
PROGRAMS = 8192


@triton.jit
def _advance(source, store, who, sizes, strides, layer, BR: tl.constexpr, BC: tl.constexpr):
    mem_len, slots, counts = who
    sinks, segment, capacity, width = sizes
    source_layer_rows, source_row, store_layer, store_slot, store_row = strides
    blocks = tl.cdiv(width, BC)
    group, groups = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    stream = tl.program_id(1)
    columns = tl.program_id(0) % blocks * BC + tl.arange(0, BC)  # [BC]
    slot = tl.load(slots + stream).to(tl.int64)
    count, filled = tl.load(counts + stream), tl.load(mem_len + slot)

    shift = tl.maximum(filled + count - capacity, 0)
    first = tl.where(shift > 0, tl.minimum(sinks, filled), filled)
    last = tl.minimum(filled + count, capacity)
    # Rows a chain's step apart; with no old row on the move there are no chains.
    step = tl.where((shift == 0) | (count >= capacity - sinks), capacity, shift)
    new = source + (layer * source_layer_rows + stream * segment).to(tl.int64) * source_row  # row 0 of the stream's segment
    old = store + layer.to(tl.int64) * store_layer + slot * store_slot
    in_columns = columns[None, :] < width
    for chain in range(first + group * BR, tl.minimum(first + step, last), groups * BR):
        chains = chain + tl.arange(0, BR)  # [BR]
        owned = chains < first + step
        for offset in range(0, last - chain, step):
            to = chains + offset
            origin = tl.where(to < sinks, to, to + shift)  # in [old; new]
            valid = (owned & (to < last))[:, None] & in_columns  # [BR, BC]
            is_old = (origin < filled)[:, None]
            kept = tl.load(old + origin[:, None].to(tl.int64) * store_row + columns[None, :], mask=valid & is_old, other=0)
            entering = tl.load(
                new + (origin - filled)[:, None].to(tl.int64) * source_row + columns[None, :],
                mask=valid & (origin >= filled)[:, None],
                other=0,
            )
            tl.store(old + to[:, None].to(tl.int64) * store_row + columns[None, :], tl.where(is_old, kept, entering), mask=valid)


@triton.jit(do_not_specialize=["sinks", "segment", "capacity", "source_layer_rows"])
def dynadapt_memory_advance(
    source,
    store0,
    store1,
    column0,
    column1,
    mem_len,
    slots,
    counts,
    sinks,
    segment,
    capacity,
    width,
    source_layer_rows,
    source_row,
    store_layer,
    store_slot,
    store_row,
    STORES: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    wait_for_previous()
    layer = tl.program_id(2) // STORES
    who = (mem_len, slots, counts)
    sizes = (sinks, segment, capacity, width)
    strides = (source_layer_rows, source_row, store_layer, store_slot, store_row)
    # Two calls and not one with a chosen pointer: what is known of each pointer's alignment stays known.
    if tl.program_id(2) % STORES == 0:
        _advance(source + column0, store0, who, sizes, strides, layer, BR, BC)
    else:
        _advance(source + column1, store1, who, sizes, strides, layer, BR, BC)


@triton.jit(do_not_specialize=["streams", "capacity"])
def dynadapt_memory_fill(mem_len, slots, counts, streams, capacity, BS: tl.constexpr):
    wait_for_previous()
    for start in range(0, streams, BS):
        i = start + tl.arange(0, BS)
        slot = tl.load(slots + i, mask=i < streams, other=0)
        filled = tl.load(mem_len + slot, mask=i < streams, other=0) + tl.load(counts + i, mask=i < streams, other=0)
        tl.store(mem_len + slot, tl.minimum(filled, capacity), mask=i < streams)


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of a tile: columns without a remainder where the width allows."""
    columns = min(256, width & -width)
    columns = columns if columns >= 32 else block(width, 256)
    return TILE // columns, columns


def _check(source, columns, stores, slots):
    if len(columns) != len(stores):
        raise ValueError(f"memory_advance: columns has {len(columns)} entries for {len(stores)} stores")
    if source.shape[1] % len(slots):
        raise ValueError(f"memory_advance: source has {source.shape[1]} rows, accepted is a multiple of the {len(slots)} streams")
    for column, store in zip(columns, stores):
        if store.shape != stores[0].shape or store.stride() != stores[0].stride() or store.stride(3) != 1:
            raise ValueError(
                f"memory_advance: stores have shapes {[tuple(s.shape) for s in stores]} and strides "
                f"{[s.stride() for s in stores]}, accepted are equal ones with contiguous rows"
            )
        if store.shape[0] != source.shape[0]:
            raise ValueError(f"memory_advance: stores have {store.shape[0]} layers, source has {source.shape[0]}")
        if column < 0 or column + store.shape[3] > source.shape[2]:
            raise ValueError(f"memory_advance: columns {column} to {column + store.shape[3]} are not within source's {source.shape[2]}")
    if source.stride(2) != 1 or source.stride(0) % source.stride(1):
        raise ValueError(f"memory_advance: source has strides {source.stride()}, accepted are contiguous rows and layers whole rows apart")


def memory_advance(source, columns, stores, mem_len, slots, counts, sinks) -> None:
    """Each stream's first ``counts`` rows of the segment enter its slot's windows; see ``dynadapt.ops.memory``."""
    _check(source, columns, stores, slots)
    layers, rows, _ = source.shape
    capacity, width = stores[0].shape[2:]
    streams = len(slots)
    br, bc = _tile(width)
    for i in range(0, len(stores), 2):
        pair, starts = stores[i : i + 2], columns[i : i + 2]
        blocks = triton.cdiv(width, bc)
        groups = max(1, min(triton.cdiv(capacity, br), PROGRAMS // (blocks * streams * layers * len(pair))))
        dynadapt_memory_advance[(groups * blocks, streams, layers * len(pair))](
            source,
            pair[0],
            pair[-1],
            starts[0],
            starts[-1],
            mem_len,
            slots,
            counts,
            sinks,
            rows // streams,
            capacity,
            width,
            source.stride(0) // source.stride(1),
            source.stride(1),
            *pair[0].stride()[:3],
            STORES=len(pair),
            BR=br,
            BC=bc,
            num_warps=4,
            num_stages=1,
            **FUSION,
        )


def memory_fill(mem_len, slots, counts, capacity) -> None:
    """mem_len[slots] += counts, at most ``capacity``; see ``dynadapt.ops.memory``."""
    dynadapt_memory_fill[(1,)](mem_len, slots, counts, len(slots), capacity, BS=128, num_warps=4, num_stages=1, **FUSION)


_TYPES = dict.fromkeys(("source", "store0", "store1"), "*bf16") | dict.fromkeys(("mem_len", "slots", "counts"), "*i32")


def _variant(name: str, width: int, stores: int, dtype: str = "bf16") -> Variant:
    sizes = dict(zip(("BR", "BC"), _tile(width)), STORES=stores)
    return variant(f"memory_advance {name}", dynadapt_memory_advance, _TYPES, sizes, dtype=dtype, num_stages=1, registers=128)


VARIANTS = [
    _variant("keys and values of 192", 192, 2),
    _variant("keys and values of 1024", 1024, 2),
    _variant("inputs of 4096", 4096, 1),
    _variant("keys and values of 1024 fp32", 1024, 2, "fp32"),
    variant("memory_fill", dynadapt_memory_fill, _TYPES, {"BS": 128}, num_stages=1, registers=64),
]
