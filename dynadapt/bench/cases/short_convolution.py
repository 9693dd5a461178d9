"""Cases of the short convolution."""

from __future__ import annotations

import torch

from .base import Draw, Op, OpCase

SHORT_CONVOLUTION_FORWARD = Op(
    "short_convolution_forward",
    "y final",
    rows="x y",
    streams="slots lengths final",
    gradients={"x": "dx", "weight": "dweight"},
    backward="short_convolution_backward",
)
SHORT_CONVOLUTION_BACKWARD = Op(
    "short_convolution_backward", "dx dweight", changed="dweight", wide="dweight", rows="dy x dx", streams="slots lengths"
)


def _inputs(d: Draw, streams, segment, channels, width, memory):
    lengths = None
    if d.odd and streams > 1:
        lengths = torch.full((streams,), segment, dtype=torch.int32, device=d.device)
        lengths[-1] = segment * 2 // 3
    return {
        "x": d.rows(streams * segment, channels),
        "weight": d.acts(channels, width),
        "state": d.acts(d.slot_count(streams), width - 1, channels) if memory else None,
        "slots": d.slots(streams),
        "lengths": lengths,
    }


def short_convolution_forward(d: Draw, streams: int, segment: int, channels: int, width: int = 4, memory: bool = True) -> OpCase:
    n = streams * segment
    arguments = {
        **_inputs(d, streams, segment, channels, width, memory),
        "y": d.out(n, channels),
        "final": d.out(streams, width - 1, channels),
    }
    return OpCase(SHORT_CONVOLUTION_FORWARD, d.dtype, arguments, bytes=4 * n * channels)


def short_convolution_backward(
    d: Draw, streams: int, segment: int, channels: int, width: int = 4, memory: bool = True, learns: bool = True
) -> OpCase:
    n = streams * segment
    arguments = {
        "dy": d.acts(n, channels),
        **_inputs(d, streams, segment, channels, width, memory),
        "dx": d.out(n, channels),
        "dweight": d.wide(channels, width) if learns else None,
    }
    return OpCase(SHORT_CONVOLUTION_BACKWARD, d.dtype, arguments, bytes=6 * n * channels)
