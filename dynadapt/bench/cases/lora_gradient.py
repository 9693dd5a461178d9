"""Cases of the adapters' gradient, alone and with the update."""

from __future__ import annotations

from dynadapt.ops import lora_gradient as ops
from dynadapt.ops.linear import low_rank_size

from .base import Draw, Op, OpCase
from .linear import widths

LORA_GRADIENT = Op("lora_gradient", "dA dBt", wide="dA dBt", rows="dy x u dU", streams="slots")


def lora_inputs(d: Draw, n: int, k: int, parts, rank: int | tuple, streams: int) -> dict:
    """What both forms of the adapters' gradient read."""
    width, _, scale = widths(parts, rank)
    return {
        "dy": d.rows(n, sum(parts), dense=True),
        "x": d.rows(n, k, dense=True),
        "u": d.acts(n, width),
        "dU": d.acts(n, width, scale=n**-0.5),
        "part_sizes": list(parts),
        "scale": scale,
        "slots": d.slots(streams),
    }


def lora_gradient(d: Draw, n: int, k: int, parts, rank: int | tuple, streams: int = 1, accumulate: bool = False, label: str = "") -> OpCase:
    """Slots of no stream hold numbers, which have to stay."""
    inputs = lora_inputs(d, n, k, parts, rank, streams)
    width, most, _ = widths(parts, rank)
    dA, dBt = d.per_slot(d.slot_count(streams), (width, k), (most, sum(parts)), wide=True)
    if not accumulate:
        dA[inputs["slots"].long()] = dBt[inputs["slots"].long()] = float("nan")
    learned = streams * sum(low_rank_size(k, parts, rank))
    moved = 2 * n * (sum(parts) + k + 2 * width) + 4 * learned
    flops = ops.flops(n, k, parts, rank)
    return OpCase(LORA_GRADIENT, d.dtype, {**inputs, "dA": dA, "dBt": dBt, "accumulate": accumulate}, label, moved, flops)
