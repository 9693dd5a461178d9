"""Cases of the linear layer with a low-rank adapter, and of the gradients of what learns in it."""

from __future__ import annotations

from dynadapt.ops import linear
from dynadapt.ops import weight_gradient as weight_op

from .base import Draw, Op, OpCase

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
LORA_GRADIENT = Op("lora_gradient", "dA dBt", wide="dA dBt", rows="dy x u dU", streams="slots")
WEIGHT_GRADIENT = Op("weight_gradient", "dW", wide="dW", rows="dy x")
ROW_SCORES = Op("row_scores", "out", wide="out", rows="dy x")
BIAS_GRADIENT = Op("bias_gradient", "db", changed="db", wide="db", rows="dy")
SCALE = 0.7  # of the adapters, in every case


def _adapter(d: Draw, streams, k, parts, rank) -> dict:
    """A, Bt and slots; without a rank slots alone."""
    A = Bt = None
    if rank:
        A, Bt = d.per_slot(d.slot_count(streams), (len(parts) * rank, k), (rank, sum(parts)))
        A, Bt = A.div_(k**0.5), Bt.mul_(0.3)  # in place: the strides stay
    return {"A": A, "Bt": Bt, "slots": d.slots(streams), "scale": SCALE}


def _layer_bytes(streams, n, k, parts, rank) -> int:
    learned = streams * rank * (len(parts) * k + sum(parts))
    return 2 * (n * (k + sum(parts) + len(parts) * rank) + sum(parts) * k + learned)


def linear_forward(d: Draw, n: int, k: int, parts, rank: int, streams: int = 1, bias: bool = True, label: str = "") -> OpCase:
    """n rows of k inputs through frozen weights [part, k] and adapters of ``rank`` (0: none), streams x n / streams rows."""
    width = len(parts) * rank
    arguments = {
        "x": d.rows(n, k),
        "parts": [d.acts(part, k, scale=k**-0.5) for part in parts],
        "bias": d.acts(sum(parts)) if bias else None,
        **_adapter(d, streams, k, parts, rank),
        "u": d.out(n, width) if rank else None,
        "y": d.out(n, sum(parts)),
    }
    flops = linear.forward_flops(n, k, parts, rank)
    return OpCase(LINEAR_FORWARD, d.dtype, arguments, label, _layer_bytes(streams, n, k, parts, rank), flops)


def linear_backward(d: Draw, n: int, k: int, parts, rank: int, streams: int = 1, label: str = "") -> OpCase:
    arguments = {
        "dy": d.acts(n, sum(parts)),
        "parts": [d.acts(part, k, scale=k**-0.5) for part in parts],
        **_adapter(d, streams, k, parts, rank),
        "dU": d.out(n, len(parts) * rank) if rank else None,
        "dx": d.out(n, k),
    }
    flops = linear.backward_flops(n, k, parts, rank)
    return OpCase(LINEAR_BACKWARD, d.dtype, arguments, label, _layer_bytes(streams, n, k, parts, rank), flops)


def lora_inputs(d: Draw, n: int, k: int, parts, rank: int, streams: int) -> dict:
    """What both forms of the adapters' gradient read."""
    width = len(parts) * rank
    return {
        "dy": d.rows(n, sum(parts)),
        "x": d.rows(n, k),
        "u": d.acts(n, width),
        "dU": d.acts(n, width, scale=n**-0.5),
        "part_sizes": list(parts),
        "scale": SCALE,
        "slots": d.slots(streams),
    }


def lora_gradient(d: Draw, n: int, k: int, parts, rank: int, streams: int = 1, accumulate: bool = False, label: str = "") -> OpCase:
    """Slots of no stream hold numbers, which have to stay."""
    inputs = lora_inputs(d, n, k, parts, rank, streams)
    dA, dBt = d.per_slot(d.slot_count(streams), (len(parts) * rank, k), (rank, sum(parts)), wide=True)
    if not accumulate:
        dA[inputs["slots"].long()] = dBt[inputs["slots"].long()] = float("nan")
    learned = streams * rank * (len(parts) * k + sum(parts))
    moved = 2 * n * (sum(parts) + k + 2 * len(parts) * rank) + 4 * learned
    flops = linear.gradient_flops(n, k, parts, rank)
    return OpCase(LORA_GRADIENT, d.dtype, {**inputs, "dA": dA, "dBt": dBt, "accumulate": accumulate}, label, moved, flops)


def weight_inputs(d: Draw, n: int, out: int, k: int, chosen: int | None) -> dict:
    """dy, x and which rows of the weight [out, k] are asked for (None: all)."""
    rows = None
    if chosen is not None:
        rows = d.permutation(out)[:chosen].int() if d.odd else d.permutation(out)[:chosen].sort().values.int()
    return {"dy": d.rows(n, out), "x": d.rows(n, k), "rows": rows}


def weight_gradient(d: Draw, n: int, out: int, k: int, chosen: int | None = None, accumulate: bool = False, label: str = "") -> OpCase:
    count = chosen or out
    dW = d.wide(count, k) if accumulate else d.out(count, k, wide=True)
    arguments = {**weight_inputs(d, n, out, k, chosen), "dW": dW, "accumulate": accumulate}
    moved = 2 * n * (count + k) + 4 * count * k
    return OpCase(WEIGHT_GRADIENT, d.dtype, arguments, label, moved, weight_op.flops(n, count, k))


def row_scores(d: Draw, n: int, out: int, k: int, label: str = "") -> OpCase:
    arguments = {"dy": d.rows(n, out), "x": d.rows(n, k), "out": d.out(out, wide=True)}
    return OpCase(ROW_SCORES, d.dtype, arguments, label, 2 * n * (k + out) + 4 * out)


def bias_gradient(d: Draw, n: int, out: int, label: str = "") -> OpCase:
    return OpCase(BIAS_GRADIENT, d.dtype, {"dy": d.rows(n, out), "db": d.wide(out)}, label, 2 * n * out + 8 * out)
