"""The cases of dynadapt/bench/cases/ at the sizes of the measured models, with what others offer for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F

from dynadapt.bench import cases
from dynadapt.kernels.common import INTERPRET

from .geometry import MODELS
from .peers import fused_adam, head_peers, sdpa_backward, sdpa_forward

BF16 = torch.bfloat16
DEVICE = "cpu" if INTERPRET else "cuda"


@dataclass
class Case(cases.OpCase):
    """``peers``: name -> function that makes a call to time."""

    peers: dict[str, Callable] = field(default_factory=dict)


class Sizes(cases.Sizes):
    """Of a model by its name."""

    def __init__(self, model: str, streams: int, segment: int, device: str, dtype: torch.dtype = BF16):
        super().__init__(MODELS[model], streams, segment, device, dtype)
        self.model = model


def materialise(case: Case) -> list:
    return cases.materialise(case, "triton")


def check(case: Case) -> float:
    return cases.check(case, "triton")[1]


def agrees(case: Case, function) -> float | None:
    return cases.agrees(case, "triton", function=function)


# ---- what others offer, from a case's own arguments


def _linear_forward(z, case):
    x, weights, a, bt, scale = (case[name] for name in ("x", "parts", "A", "Bt", "scale"))
    dense, widths, slots, rank = torch.cat(weights), [w.shape[0] for w in weights], case["slots"].long(), bt.shape[1]
    low = [
        (a[slots, i * rank : (i + 1) * rank].transpose(1, 2).contiguous(), t.contiguous()) for i, t in enumerate(bt[slots].split(widths, 2))
    ]

    def bmm():
        xs = x.view(z.S, z.T, -1)
        return lambda: F.linear(x, dense).view(z.S, z.T, -1).add_(torch.cat([(xs @ s) @ t for s, t in low], 2), alpha=scale)

    return {"torch, base product alone": lambda: lambda: F.linear(x, dense), "torch, stacked adapters and bmm": bmm}


def _linear_backward(z, case):
    dy, dense = case["dy"], torch.cat(case["parts"])
    return {"torch, base product alone": lambda: lambda: torch.mm(dy, dense)}


def _lora_gradient(z, case):
    dy, x, u, du = (case[name].view(z.S, z.T, -1) for name in ("dy", "x", "u", "dU"))
    return {"torch bmm (all parts against all columns)": lambda: lambda: (du.transpose(1, 2) @ x, u.transpose(1, 2) @ dy)}


def _weight_gradient(z, case):
    dy, x, rows = case["dy"], case["x"], case["rows"]
    if rows is None:
        return {"torch mm": lambda: lambda: dy.t() @ x}
    return {"torch gather and mm": lambda: lambda: dy[:, rows].t() @ x}


def _cross_entropy(z, case):
    return head_peers(case["h"], case["head"], case["targets"], case["dh"] is not None)


def _norm_forward(z, case):
    x, delta, weight = case["x"], case["delta"], case["weight"]
    return {"torch, eager": lambda: lambda: F.rms_norm(x + delta, weight.shape, weight, 1e-5)}


def _activation_forward(z, case):
    gate, up = case["h"].chunk(2, 1)
    return {"torch, eager": lambda: lambda: F.silu(gate) * up}


def _memory_of(case):
    """Tokens remembered by each stream."""
    return 0 if case["mem_k"] is None else case["mem_k"].shape[1]


PEERS = {
    "linear_forward": _linear_forward,
    "linear_backward": _linear_backward,
    "lora_gradient": _lora_gradient,
    "weight_gradient": _weight_gradient,
    "cross_entropy": _cross_entropy,
    "norm_forward": _norm_forward,
    "activation_forward": _activation_forward,
    "attention_forward": lambda z, case: {"torch SDPA, keys rotated before": sdpa_forward(z, _memory_of(case))},
    "attention_backward": lambda z, case: {"torch SDPA (gradient of memory too)": sdpa_backward(z, _memory_of(case))},
    "update": lambda z, case: fused_adam(z.S, case["state"].master.shape[1], z.device),
}


def _with_peers(op: str):
    def make(z, memory):
        plain = cases.OPS[op](z, memory)
        peers = PEERS.get(op, lambda z, case: {})
        return [Case(**{f.name: getattr(c, f.name) for f in fields(cases.OpCase)}, peers=peers(z, c)) for c in plain]

    return make


# Ops that the adapt step of the campaign does not call: `dynadapt profile` has them, and the stages keep their time.
ELSEWHERE = (
    "adapted_cross_entropy",
    "adapted_cross_entropy_gradient",
    "cross_entropy_weight_gradient",
    "head_norm_backward",
    "bias_gradient",
    "row_scores",
    "linear_mse",
    "embedding_backward",
    "adapted_embedding_forward",
    "adapted_embedding_backward",
)
ELSEWHERE += tuple(
    f"{op}_{way}" for op in ("short_convolution", "delta_gates", "delta_rule", "gated_norm") for way in ("forward", "backward")
)
OPS = {op: _with_peers(op) for op in cases.OPS if op not in ELSEWHERE}
