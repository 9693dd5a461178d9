"""Cases of attention over [memory; segment]."""

from __future__ import annotations

import torch

from dynadapt.ops import attention as ops

from .base import Draw, Op, OpCase
from .calls import after_reference

ATTENTION_FORWARD = Op(
    "attention_forward",
    "out lse",
    wide="cos sin lse",
    rows="qkv out",
    streams="slots lse",
    gradients={"qkv": "dqkv"},
    backward="attention_backward",
)
ATTENTION_BACKWARD = Op("attention_backward", "dqkv", wide="cos sin lse", rows="dout qkv out dqkv", streams="slots lse")


def attention_forward(
    d: Draw,
    streams: int,
    segment: int,
    capacity: int | None,
    hq: int,
    hkv: int,
    head: int,
    rotary: bool = True,
    label: str = "",
    window: int | None = None,
    softcap: float | None = None,
) -> OpCase:
    """``capacity`` entries of memory a slot (None: no memory), of which an odd case fills the first stream's and others by chance."""
    n, width, slots, count = streams * segment, hkv * head, d.slots(streams), d.slot_count(streams)
    mem_k = mem_v = lengths = cos = sin = None
    if capacity is not None:
        lengths = torch.full((count,), capacity, dtype=torch.int32, device=d.device)
        if d.odd:
            lengths = d.integers(capacity + 1, count).int()
            lengths[slots[0]] = capacity
        stores = d.acts(count, 2, capacity, width)  # keys and values are views of one store
        mem_k, mem_v = (stores[:, 0], stores[:, 1]) if d.strided else (stores[:, i].contiguous() for i in range(2))
    if rotary:
        frequency = 10000.0 ** (-torch.arange(head // 2, device=d.device) / (head // 2))
        angle = torch.arange(segment + (capacity or 0), device=d.device)[:, None] * frequency
        cos, sin = angle.cos().to(d.wide_dtype), angle.sin().to(d.wide_dtype)
    arguments = {
        "qkv": d.acts(n, (hq + 2 * hkv) * head),
        **{"mem_k": mem_k, "mem_v": mem_v, "mem_len": lengths, "slots": slots, "cos": cos, "sin": sin},
        **{"hq": hq, "hkv": hkv, "d": head, "scale": head**-0.5},
        "out": d.out(n, hq * head),
        "lse": d.out(streams, hq, segment, wide=True),
        "window": window,
        "softcap": softcap,
    }
    memory = ops.seen_memory(capacity or 0, window)
    moved = 2 * (n * (2 * hq * head + 2 * width) + 2 * streams * memory * width)
    flops = streams * (ops.forward_flops(segment, memory, hq, head) - ops.masked_flops(segment, hq, head, memory, window)[0])
    return OpCase(ATTENTION_FORWARD, d.dtype, arguments, label, moved, flops)


def attention_backward(
    d: Draw,
    streams: int,
    segment: int,
    capacity: int | None,
    hq: int,
    hkv: int,
    head: int,
    rotary: bool = True,
    label: str = "",
    window: int | None = None,
    softcap: float | None = None,
) -> OpCase:
    return attention_backward_of(d, attention_forward(d, streams, segment, capacity, hq, hkv, head, rotary, label, window, softcap))


def attention_backward_of(d: Draw, forward: OpCase) -> OpCase:
    """The backward case of a forward case that was changed."""
    n, large = forward.row_count, "cpu" if d.device == "cpu" else "triton"
    f = after_reference(forward, large if n > 4096 else "reference")  # large: our own forward, which is checked as a case of its own
    given = ("mem_k", "mem_v", "mem_len", "slots", "cos", "sin", "hq", "hkv", "d", "scale")
    arguments = {
        "dout": d.acts(*f["out"].shape),
        **{name: f[name] for name in ("qkv", "out", "lse", *given)},
        "dqkv": d.out(*f["qkv"].shape),
        "window": f["window"],
        "softcap": f["softcap"],
    }
    streams, hq, segment = f["lse"].shape
    memory, width = 0 if f["mem_k"] is None else ops.seen_memory(f["mem_k"].shape[1], f["window"]), f["hkv"] * f["d"]
    moved = 2 * (n * (4 * hq * f["d"] + 4 * width) + 2 * streams * memory * width)
    flops = streams * (sum(ops.backward_flops(segment, memory, hq, f["d"])) - ops.masked_flops(segment, hq, f["d"], memory, f["window"])[1])
    # P and dS are rounded on both sides, each in its own order: single elements differ by half of a rounding either way.
    slack = 4.0 if d.dtype == torch.bfloat16 else 1.0
    return OpCase(ATTENTION_BACKWARD, d.dtype, arguments, forward.label, moved, flops, slack)
