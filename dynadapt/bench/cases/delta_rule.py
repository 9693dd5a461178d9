"""Cases of the gated delta rule."""

from __future__ import annotations

import torch

from dynadapt.ops import delta_rule as ops

from .base import Draw, Op, OpCase

DELTA_RULE_FORWARD = Op(
    "delta_rule_forward",
    "out final",
    wide="g beta state final",
    rows="qkv g beta out",
    streams="slots lengths final",
    gradients={"qkv": "dqkv", "g": "dg", "beta": "dbeta"},
    backward="delta_rule_backward",
)
DELTA_RULE_BACKWARD = Op(
    "delta_rule_backward", "dqkv dg dbeta", wide="g beta state dg dbeta", rows="dout qkv g beta dqkv dg dbeta", streams="slots lengths"
)


def _inputs(d: Draw, streams, segment, hk, hv, dk, dv, memory):
    """Of both ops: a quarter of the decays is strong; an odd case cuts the last of several streams to a part of the segment."""
    n = streams * segment
    slots, count = d.slots(streams), d.slot_count(streams)
    strong = torch.where(d.uniform(n, hv) < 0.25, 20.0, 1.0)
    lengths = None
    if d.odd and streams > 1:
        lengths = torch.full((streams,), segment, dtype=torch.int32, device=d.device)
        lengths[-1] = segment * 2 // 3
    return {
        "qkv": d.acts(n, 2 * hk * dk + hv * dv),
        "g": -0.2 * d.uniform(n, hv) * strong,
        "beta": d.uniform(n, hv),
        "state": d.wide(count, hv, dk, dv) if memory else None,
        "slots": slots,
        "lengths": lengths,
        **{"hk": hk, "hv": hv, "dk": dk, "dv": dv, "scale": dk**-0.5, "eps": 1e-6},
    }


def delta_rule_forward(
    d: Draw, streams: int, segment: int, hk: int, hv: int, dk: int, dv: int, memory: bool = True, label: str = ""
) -> OpCase:
    """hk key heads of ``dk`` and hv value heads of ``dv``; ``memory``: streams go on from a state."""
    f = _inputs(d, streams, segment, hk, hv, dk, dv, memory)
    arguments = {**f, "out": d.out(streams * segment, hv * dv), "final": d.out(streams, hv, dk, dv, wide=True)}
    n, states = streams * segment, 4 * streams * hv * dk * dv
    moved = 2 * n * (2 * hk * dk + 2 * hv * dv) + 8 * n * hv + states * (1 + memory)
    return OpCase(DELTA_RULE_FORWARD, d.dtype, arguments, label, moved, ops.forward_flops(n, hv, dk, dv))


def delta_rule_backward(
    d: Draw, streams: int, segment: int, hk: int, hv: int, dk: int, dv: int, memory: bool = True, label: str = ""
) -> OpCase:
    f, n = _inputs(d, streams, segment, hk, hv, dk, dv, memory), streams * segment
    arguments = {
        "dout": d.acts(n, hv * dv),
        **f,
        "dqkv": d.out(*f["qkv"].shape),
        **{name: d.out(n, hv, wide=True) for name in ("dg", "dbeta")},
    }
    moved = 2 * n * (4 * hk * dk + 3 * hv * dv) + 16 * n * hv + 4 * streams * hv * dk * dv * memory
    return OpCase(DELTA_RULE_BACKWARD, d.dtype, arguments, label, moved, sum(ops.backward_flops(n, hv, dk, dv)))
