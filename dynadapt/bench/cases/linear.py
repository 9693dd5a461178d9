"""Cases of the linear layer with a low-rank adapter."""

from __future__ import annotations

from dynadapt.ops import linear as ops

from .base import Draw, Op, OpCase, weight_bytes

LINEAR_FORWARD = Op(
    "linear_forward",
    "u y",
    frozen="parts",
    rows="x u y",
    streams="slots",
    gradients={"x": "dx", "A": "dA", "Bt": "dBt", "bias": "db"},
    backward="linear_backward lora_gradient bias_gradient",
)
LINEAR_BACKWARD = Op("linear_backward", "dU dx", frozen="parts", rows="dy dU dx", streams="slots")
SCALE = 0.7  # of the adapters, in every case whose parts are alike


def widths(parts, rank) -> tuple[int, int, float | list]:
    """(rows of A, rows of Bt, the op's scale) for a rank that is one number, or a tuple with each part's."""
    if isinstance(rank, int):
        return len(parts) * rank, rank, SCALE
    return sum(rank), max(rank), [(own, SCALE + 0.1 * p) for p, own in enumerate(rank)]


def _adapter(d: Draw, streams, k, parts, rank) -> dict:
    """A, Bt and slots; without a rank slots alone."""
    A, Bt, scale = None, None, SCALE
    if rank:
        width, most, scale = widths(parts, rank)
        A, Bt = d.per_slot(d.slot_count(streams), (width, k), (most, sum(parts)))
        A, Bt = A.div_(k**0.5), Bt.mul_(0.3)  # in place: the strides stay
    return {"A": A, "Bt": Bt, "slots": d.slots(streams), "scale": scale}


def _layer_bytes(streams, n, k, parts, rank, base) -> int:
    learned = streams * sum(ops.low_rank_size(k, parts, rank))
    return 2 * (n * (k + sum(parts) + widths(parts, rank)[0]) + learned) + int(weight_bytes(sum(parts) * k, base))


def linear_forward(
    d: Draw, n: int, k: int, parts, rank: int | tuple, streams: int = 1, bias: bool = True, label: str = "", base: str = "same"
) -> OpCase:
    """n rows of k inputs through frozen weights [part, k] and adapters of ``rank`` (0: none; a tuple: each part's), streams x n / streams rows."""
    width = widths(parts, rank)[0]
    arguments = {
        "x": d.rows(n, k),
        "parts": [d.weight(part, k, base) for part in parts],
        "bias": d.acts(sum(parts)) if bias else None,
        **_adapter(d, streams, k, parts, rank),
        "u": d.out(n, width) if rank else None,
        "y": d.out(n, sum(parts)),
    }
    flops = ops.forward_flops(n, k, parts, rank)
    return OpCase(LINEAR_FORWARD, d.dtype, arguments, label, _layer_bytes(streams, n, k, parts, rank, base), flops, base=base)


def linear_backward(d: Draw, n: int, k: int, parts, rank: int | tuple, streams: int = 1, label: str = "", base: str = "same") -> OpCase:
    arguments = {
        "dy": d.acts(n, sum(parts)),
        "parts": [d.weight(part, k, base) for part in parts],
        **_adapter(d, streams, k, parts, rank),
        "dU": d.out(n, widths(parts, rank)[0]) if rank else None,
        "dx": d.out(n, k),
    }
    flops = ops.backward_flops(n, k, parts, rank)
    return OpCase(LINEAR_BACKWARD, d.dtype, arguments, label, _layer_bytes(streams, n, k, parts, rank, base), flops, base=base)
