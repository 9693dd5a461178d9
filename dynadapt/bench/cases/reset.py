"""Cases of streams that go back to the prior."""

from __future__ import annotations

import torch

from .base import Draw, Op, OpCase

STATE = "master working grad first second step"
RESET = Op("reset", STATE, changed=STATE, wide="prior master grad first second", streams="flags slots")


def reset(d: Draw, p: int, streams: int = 2, label: str = "") -> OpCase:
    """Every other stream goes back; p parameters a slot."""
    count = d.slot_count(streams)
    arguments = {
        "flags": torch.arange(1, streams + 1, dtype=torch.int32, device=d.device) % 2,
        "slots": d.slots(streams),
        "prior": d.wide(p),
        "master": d.wide(count, p),
        "working": d.acts(count, p),
        "grad": d.wide(count, p),
        "first": d.wide(count, p),
        "second": d.uniform(count, p),
        "step": torch.arange(count, dtype=torch.int32, device=d.device) * 3,
        "kept": None,
    }
    flagged = (streams + 1) // 2
    return OpCase(RESET, d.dtype, arguments, label, 4 * p + flagged * p * (4 * 4 + 2))
