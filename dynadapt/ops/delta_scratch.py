"""Scratch memory of the gated delta rule on a GPU (kernels/delta_rule.py): what the kernels take, and what a plan counts without them.

All of it is float32. A buffer is as large as its largest group of streams and stays; forward and backward share those that are equally large.
"""

from __future__ import annotations

CHUNK = 32  # tokens
BUDGET = 1 << 30  # bytes of a group of streams; a single stream may take more


def rooms_forward(T: int, hk: int, hv: int, dk: int, dv: int, final: bool) -> dict[str, int]:
    """{buffer: numbers a stream} of ``delta_rule_forward``; ``final``: the state has a place of its own to go to."""
    chunks = -(-T // CHUNK)
    rooms = {"inverses": hv * chunks * CHUNK * CHUNK, "units": T * 2 * hk}
    return rooms if final else rooms | {"states": hv * dk * dv}


def rooms_backward(T: int, hk: int, hv: int, dk: int, dv: int) -> dict[str, int]:
    """The same of ``delta_rule_backward``, which keeps the states of all chunks."""
    chunks = -(-T // CHUNK)
    rooms = rooms_forward(T, hk, hv, dk, dv, final=True) | dict.fromkeys(("states", "dstates"), hv * (chunks + 1) * dk * dv)
    rooms |= dict.fromkeys(("writes", "dwrites"), hv * chunks * CHUNK * dv)
    return rooms | {"pairs": hv * chunks * 2 * CHUNK * CHUNK, "along": hv * chunks * 2 * CHUNK}


def groups(streams: int, rooms: dict[str, int], budget: int = BUDGET) -> list[tuple[int, int]]:
    """(first, end) of the groups of streams that are taken together."""
    most = max(1, budget // max(1, 4 * sum(rooms.values())))
    return [(lo, min(lo + most, streams)) for lo in range(0, streams, most)]


def buffers(op: str, qkv, slots, hk: int, hv: int, dk: int, dv: int, final: bool) -> dict[tuple[str, int], int]:
    """{(name, numbers): bytes} of what one call of ``op``, of rows qkv and streams ``slots``, takes."""
    streams = len(slots)
    sizes = len(qkv) // streams, hk, hv, dk, dv
    rooms = rooms_forward(*sizes, final) if op == "delta_rule_forward" else rooms_backward(*sizes)
    most = max(hi - lo for lo, hi in groups(streams, rooms))
    return {(name, most * size): 4 * most * size for name, size in rooms.items()}
