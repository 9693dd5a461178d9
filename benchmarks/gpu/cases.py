"""Every op of the step at a model's sizes: its arguments, the bytes and FLOPs it cannot avoid, and what others offer for it.

Bytes are each input read once and each output written once; FLOPs come from the op's own formula. ``check`` holds a case
against the float64 reference by the rule of tests/gpu/compare.py; it is run on few rows, because that reference is not small.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from typing import Callable

import torch

from dynadapt.model import rope_tables
from dynadapt.ops import attention, cross_entropy, linear, resolve, weight_gradient
from dynadapt.ops.fused_update import TensorState, UpdateRule

from .campaign import ROOT
from .geometry import MODELS, RANK

sys.path.insert(0, str(ROOT / "tests"))  # the comparison is the tests' own
from gpu.compare import DEVICE, TOLERANCE, Out, Weight, _convert  # noqa: E402

BF16 = torch.bfloat16


@dataclass
class Case:
    """``arguments`` in the op's order, outputs marked Out. ``peers``: name -> function that makes a call to time."""

    op: str
    label: str
    arguments: list
    bytes: int
    flops: int = 0
    peers: dict[str, Callable] = field(default_factory=dict)
    slack: float = 1.0


class Sizes:
    """One model's widths at S streams of T tokens, on one device."""

    def __init__(self, model: str, streams: int, segment: int, device: str):
        self.c, self.model = MODELS[model], model
        self.S, self.T, self.N, self.device = streams, segment, streams * segment, device
        q, kv = self.c.heads * self.c.head_dim, self.c.kv_heads * self.c.head_dim
        h, f = self.c.hidden_size, self.c.ffn_size
        self.groups = {"qkv": (h, [q, kv, kv]), "o": (q, [h]), "mlp_in": (h, [f, f]), "down": (f, [h])}
        self.slots = torch.arange(streams, dtype=torch.int32, device=device).flip(0).contiguous()

    def randn(self, *shape, scale=1.0, dtype=BF16):
        return (scale * torch.randn(shape, device=self.device)).to(dtype)

    def out(self, *shape, wide=False):
        return Out(torch.full(shape, float("nan"), dtype=torch.float32 if wide else BF16, device=self.device), wide)


def stack(parts):
    """The parts of a group as views of one [O, K] tensor, as an engine keeps them."""
    whole = torch.cat([p.weight for p in parts])
    start = 0
    for part in parts:
        rows = part.weight.shape[0]
        part.weight = whole[start : start + rows]
        start += rows
    return parts


def _build(value, dtype, wide, device):
    """The tests' conversion of an argument for one run, for the state of a fused update too."""
    if isinstance(value, TensorState):
        return replace(value, **{f.name: _build(getattr(value, f.name), dtype, wide, device) for f in fields(value)})
    if isinstance(value, list):
        return [_build(v, dtype, wide, device) for v in value]
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return value.clone()  # counters that an op moves on start anew in each run
    return _convert(value, dtype, wide, device)


def _outputs(argument, built):
    """The tensors of ``built`` that the op writes."""
    if isinstance(argument, Out):
        yield built
    elif isinstance(argument, list):
        for a, b in zip(argument, built):
            yield from _outputs(a, b)
    elif isinstance(argument, TensorState):
        for f in fields(argument):
            yield from _outputs(getattr(argument, f.name), getattr(built, f.name))


def materialise(case: Case, dtype) -> list:
    """The arguments of a timed call."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    call = [_build(a, dtype, wide, DEVICE) for a in case.arguments]
    return [stack(a) if isinstance(a, list) and a and hasattr(a[0], "weight") else a for a in call]


def run(case: Case, function, dtype) -> list[torch.Tensor]:
    """The outputs of one call."""
    call = materialise(case, dtype)
    function(*call)
    return [out for a, built in zip(case.arguments, call) for out in _outputs(a, built)]


def check(case: Case, dtype) -> float:
    """The largest relative error of the op's outputs (2-norm, against float64); AssertionError when one is further off than
    plain torch in the same dtype, beyond the tests' tolerance."""
    runs = [("triton", dtype), ("reference", dtype), ("reference", torch.float64)]
    ours, plain, truth = (run(case, resolve(case.op, backend, kind).function, kind) for backend, kind in runs)
    worst = 0.0
    for i, (o, p, t) in enumerate(zip(ours, plain, truth)):
        size = t.norm().item() or 1.0
        error, yardstick = ((v.double() - t).norm().item() / size for v in (o, p))
        bound = yardstick + case.slack * 4 * TOLERANCE[dtype]["rms"]
        assert error <= bound, f"{case.op} {case.label}: output {i} is off by {error:.3g}, plain torch allows {bound:.3g}"
        worst = max(worst, error)
    return worst


def agrees(case: Case, function, dtype) -> float | None:
    """The largest relative difference (2-norm) to the plain reference in the same dtype; AssertionError when it is more than
    rounding. None where the reference does not fit in memory."""
    ours = run(case, function, dtype)
    try:
        plain = run(case, resolve(case.op, "reference", dtype).function, dtype)
    except torch.OutOfMemoryError:
        return None
    worst = 0.0
    for i, (o, p) in enumerate(zip(ours, plain)):
        difference = ((o.float() - p.float()).norm() / p.float().norm().clamp(min=1e-30)).item()
        limit = 0.03 if dtype == BF16 else 1e-4
        assert difference <= limit, f"{case.op} {case.label}: output {i} differs from torch by {difference:.3g}"
        worst = max(worst, difference)
    return worst


# ---- linear


def _adapter(z, k, parts):
    return z.randn(z.S, len(parts) * RANK, k, scale=k**-0.5), z.randn(z.S, RANK, sum(parts), scale=0.1)


def _adapter_bytes(z, k, parts):
    return 2 * z.S * RANK * (len(parts) * k + sum(parts))


def linear_forward(z, group):
    k, parts = z.groups[group]
    o, p = sum(parts), len(parts)
    weights = [Weight(z.randn(n, k, scale=k**-0.5)) for n in parts]
    a, bt = _adapter(z, k, parts)
    x = z.randn(z.N, k)
    moved = 2 * (z.N * (k + o + p * RANK) + o * k) + _adapter_bytes(z, k, parts)
    dense = torch.cat([w.tensor for w in weights])
    low = [(a[z.slots.long(), i * RANK : (i + 1) * RANK].transpose(1, 2).contiguous(), t.contiguous())
           for i, t in enumerate(bt[z.slots.long()].split(parts, 2))]

    def bmm():
        xs = x.view(z.S, z.T, k)
        return (
            lambda: torch.nn.functional.linear(x, dense)
            .view(z.S, z.T, o)
            .add_(torch.cat([(xs @ s) @ t for s, t in low], 2), alpha=2.0)
        )

    peers = {
        "torch, base product alone": lambda: (lambda: torch.nn.functional.linear(x, dense)),
        "torch, stacked adapters and bmm": bmm,
    }
    arguments = [x, weights, None, a, bt, z.slots, 2.0, z.out(z.N, p * RANK), z.out(z.N, o)]
    return Case("linear_forward", group, arguments, moved, linear.forward_flops(z.N, k, parts, RANK), peers)


def linear_backward(z, group):
    k, parts = z.groups[group]
    o, p = sum(parts), len(parts)
    weights = [Weight(z.randn(n, k, scale=k**-0.5)) for n in parts]
    a, bt = _adapter(z, k, parts)
    dy = z.randn(z.N, o)
    dense = torch.cat([w.tensor for w in weights])
    moved = 2 * (z.N * (k + o + p * RANK) + o * k) + _adapter_bytes(z, k, parts)
    arguments = [dy, weights, a, bt, z.slots, 2.0, z.out(z.N, p * RANK), z.out(z.N, k)]
    return Case("linear_backward", group, arguments, moved, linear.backward_flops(z.N, k, parts, RANK),
                {"torch, base product alone": lambda: (lambda: torch.mm(dy, dense))})


def lora_gradient(z, group):
    k, parts = z.groups[group]
    o, p = sum(parts), len(parts)
    dy, x, u, du = z.randn(z.N, o), z.randn(z.N, k), z.randn(z.N, p * RANK), z.randn(z.N, p * RANK)
    moved = 2 * z.N * (o + k + 2 * p * RANK) + 2 * _adapter_bytes(z, k, parts)
    dus, xs = du.view(z.S, z.T, -1).transpose(1, 2), x.view(z.S, z.T, k)
    us, dys = u.view(z.S, z.T, -1).transpose(1, 2), dy.view(z.S, z.T, o)
    arguments = [dy, x, u, du, parts, 2.0, z.slots, z.out(z.S, p * RANK, k, wide=True), z.out(z.S, RANK, o, wide=True), False]
    return Case("lora_gradient", group, arguments, moved, linear.gradient_flops(z.N, k, parts, RANK),
                {"torch bmm (all parts against all columns)": lambda: (lambda: (dus @ xs, us @ dys))})


def lora_gradient_update(z, group):
    """The gradient of ``lora_gradient`` applied at once by SGD with momentum."""
    gradient = lora_gradient(z, group)
    dy, x, u, du, parts, scale, slots = gradient.arguments[:7]
    k = x.shape[1]

    def state(*shape):
        master, first = (z.randn(z.S, *shape, scale=0.02, dtype=torch.float32) for _ in range(2))
        return TensorState(Out(master, True), z.out(z.S, *shape), Out(first, True))

    moving, skipped = torch.ones_like(slots), torch.zeros_like(slots)
    lr = torch.full((z.S,), 1e-3, device=z.device)
    arguments = [dy, x, u, du, parts, scale, slots, moving, state(len(parts) * RANK, k), state(RANK, sum(parts)),
                 UpdateRule("sgd", momentum=0.9), lr, skipped]
    # beside the gradient's reads: master and momentum read and written, the bf16 copy written
    learned = z.S * RANK * (len(parts) * k + sum(parts))
    moved = 2 * z.N * (sum(parts) + k + 2 * len(parts) * RANK) + 18 * learned
    return Case("lora_gradient_update", group, arguments, moved, gradient.flops)


def weight_gradient_case(z, group, share):
    k, parts = z.groups[group]
    o = sum(parts)
    n = o if share == 1 else max(1, int(share * o))
    rows = None if share == 1 else torch.randperm(o, device=z.device)[:n].sort().values.int()
    dy, x = z.randn(z.N, o), z.randn(z.N, k)
    moved = 2 * z.N * (n + k) + 4 * n * k
    peers = (
        {"torch mm": lambda: (lambda: dy.t() @ x)}
        if share == 1
        else {"torch gather and mm": lambda: (lambda: dy[:, rows].t() @ x)}
    )
    arguments = [dy, x, rows, z.out(n, k, wide=True), False]
    return Case("weight_gradient", f"{group} {share:.0%} of rows", arguments, moved, weight_gradient.flops(z.N, n, k), peers)


# ---- head


def head(z, gradient):
    n, h, v = z.N, z.c.hidden_size, z.c.vocab_size
    x, w = z.randn(n, h), z.randn(v, h, scale=h**-0.5)
    targets = torch.randint(v, (n,), device=z.device)
    weights = torch.full((n,), 1.0 / z.T, device=z.device)
    moved = 2 * (n * h * (2 if gradient else 1) + v * h) + 16 * n
    arguments = [x, Weight(w), targets, weights, z.out(n, wide=True), z.out(n, wide=True), z.out(n, h) if gradient else None]
    from .peers import head_peers

    return Case(
        "cross_entropy",
        "score and gradient" if gradient else "score",
        arguments,
        moved,
        cross_entropy.flops(n, h, v, gradient),
        head_peers(x, w, targets, gradient),
    )


# ---- the rest


def norm_forward(z):
    n, h = z.N, z.c.hidden_size
    x, delta, weight = z.randn(n, h), z.randn(n, h), z.randn(h)
    eager = lambda: torch.nn.functional.rms_norm(x + delta, (h,), weight, 1e-5)  # noqa: E731
    arguments = [x, delta, weight, None, 1e-5, "rms", z.out(n, h), z.out(n, h), z.out(n, 2, wide=True)]
    return Case("norm_forward", "rms", arguments, 8 * n * h, 0, {"torch, eager": lambda: eager})


def norm_backward(z):
    n, h = z.N, z.c.hidden_size
    res = z.randn(n, h)
    stat = torch.stack([torch.zeros(n, device=z.device), torch.rsqrt(res.float().square().mean(1) + 1e-5)], 1)
    arguments = [z.randn(n, h), res, z.randn(h), stat, "rms", z.randn(n, h), z.out(n, h), None, None]
    return Case("norm_backward", "rms", arguments, 8 * n * h)


def activation_forward(z):
    n, f = z.N, z.c.ffn_size
    h = z.randn(n, 2 * f)
    gate, up = h.chunk(2, 1)
    eager = lambda: torch.nn.functional.silu(gate) * up  # noqa: E731
    return Case("activation_forward", "swiglu", [h, "swiglu", z.out(n, f)], 6 * n * f, 0, {"torch, eager": lambda: eager})


def activation_backward(z):
    n, f = z.N, z.c.ffn_size
    return Case("activation_backward", "swiglu", [z.randn(n, f), z.randn(n, 2 * f), "swiglu", z.out(n, 2 * f)], 10 * n * f)


def _attention_inputs(z, memory):
    c = z.c
    qkv = z.randn(z.N, (c.heads + 2 * c.kv_heads) * c.head_dim)
    store = lambda: z.randn(z.S, memory, c.kv_heads * c.head_dim) if memory else None  # noqa: E731
    length = torch.full((z.S,), memory, dtype=torch.int32, device=z.device) if memory else None
    cos, sin = (t.to(z.device) for t in rope_tables(c, memory + z.T))
    return qkv, [store(), store(), length, z.slots, cos, sin, c.heads, c.kv_heads, c.head_dim, c.head_dim**-0.5]


def attention_forward(z, memory):
    c = z.c
    qkv, rest = _attention_inputs(z, memory)
    n, q, kv = z.N, c.heads * c.head_dim, c.kv_heads * c.head_dim
    causal = 2 * z.S * z.T * (z.T - 1) * c.heads * c.head_dim
    from .peers import sdpa_forward

    arguments = [qkv, *rest, z.out(n, q), z.out(z.S, c.heads, z.T, wide=True)]
    return Case(
        "attention_forward",
        f"memory {memory}",
        arguments,
        2 * (n * (2 * q + 2 * kv) + 2 * z.S * memory * kv),
        z.S * attention.forward_flops(z.T, memory, c.heads, c.head_dim) - causal,
        {"torch SDPA, keys rotated before": sdpa_forward(z, memory)},
    )


def attention_backward(z, memory):
    c = z.c
    qkv, rest = _attention_inputs(z, memory)
    n, q, kv = z.N, c.heads * c.head_dim, c.kv_heads * c.head_dim
    out, lse = z.randn(n, q), torch.empty(z.S, c.heads, z.T, device=z.device)
    backend = "triton" if n > 4096 else "reference"  # large: our own forward, which was checked as a case of its own
    resolve("attention_forward", backend, BF16).function(qkv, *rest, out, lse)
    causal = 5 * z.S * z.T * (z.T - 1) * c.heads * c.head_dim
    flops = z.S * sum(attention.backward_flops(z.T, memory, c.heads, c.head_dim)) - causal
    from .peers import sdpa_backward

    arguments = [z.randn(n, q), qkv, out, lse, *rest, z.out(n, q + 2 * kv)]
    return Case("attention_backward", f"memory {memory}", arguments, 2 * (n * (4 * q + 4 * kv) + 2 * z.S * memory * kv), flops,
                {"torch SDPA (gradient of memory too)": sdpa_backward(z, memory)})


def head_norm_forward(z):
    c, n = z.c, z.N
    qkv, d = z.randn(n, (c.heads + 2 * c.kv_heads) * c.head_dim), c.head_dim
    arguments = [
        qkv,
        z.randn(d),
        z.randn(d),
        1e-6,
        c.heads,
        c.kv_heads,
        d,
        z.out(*qkv.shape),
        z.out(n, c.heads + c.kv_heads, wide=True),
    ]
    return Case("head_norm_forward", "", arguments, 4 * qkv.numel())


def memory_advance(z, memory):
    """A full memory takes in a segment, all layers at once."""
    c = z.c
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    source = z.randn(c.layers, z.N, q + 2 * kv)
    stores = [Out(z.randn(c.layers, z.S, memory, kv)) for _ in "kv"]
    full, counts = (torch.full((z.S,), n, dtype=torch.int32, device=z.device) for n in (memory, z.T))
    moved = 2 * 2 * 2 * c.layers * z.S * min(memory, z.T) * kv
    return Case("memory_advance", f"memory {memory}", [source, (q, q + kv), stores, full, z.slots, counts, 0], moved)


def embedding_forward(z):
    n, h, v = z.N, z.c.hidden_size, z.c.vocab_size
    tokens = torch.randint(v, (n,), device=z.device)
    return Case("embedding_forward", "", [tokens, z.randn(v, h), None, None, z.out(n, h)], 4 * n * h + 8 * n)


def update(z):
    """Adam with clip over all adapters of every stream."""
    per = z.c.layers * sum(RANK * (len(parts) * k + sum(parts)) for k, parts in z.groups.values())
    shape, dev = (z.S, per), z.device
    f32 = lambda scale: z.randn(*shape, scale=scale, dtype=torch.float32)  # noqa: E731
    master, grad, first = Out(f32(0.02), True), Out(f32(1e-3), True), Out(f32(1e-3), True)
    second = Out(f32(1e-3).square(), True)
    lr, step = torch.full((z.S,), 2e-3, device=dev), torch.full((z.S,), 3, dtype=torch.int32, device=dev)
    skipped = torch.zeros(z.S, dtype=torch.int32, device=dev)
    arguments = [
        "adam",
        master,
        grad,
        first,
        second,
        None,
        None,
        z.out(*shape),
        z.slots,
        lr,
        step,
        0.0,
        1.0,
        0.9,
        0.999,
        1e-8,
        0.0,
        0.0,
        z.out(z.S, wide=True),
        skipped,
        None,
    ]
    from .peers import fused_adam

    # read master, gradient twice (norm, then use), both moments; write master, moments, zero gradient, bf16 copy
    return Case("update", "adam, clip", arguments, z.S * per * (4 * 5 + 4 * 4 + 2), 0, fused_adam(z.S, per, dev))


LINEAR = {"linear_forward": linear_forward, "linear_backward": linear_backward, "lora_gradient": lora_gradient,
          "lora_gradient_update": lora_gradient_update}
OPS = {
    **{name: (lambda make: lambda z, memory: [make(z, g) for g in z.groups])(make) for name, make in LINEAR.items()},
    "weight_gradient": lambda z, memory: [weight_gradient_case(z, "mlp_in", share) for share in (0.1, 1)],
    "cross_entropy": lambda z, memory: [head(z, True), head(z, False)],
    "norm_forward": lambda z, memory: [norm_forward(z)],
    "norm_backward": lambda z, memory: [norm_backward(z)],
    "activation_forward": lambda z, memory: [activation_forward(z)],
    "activation_backward": lambda z, memory: [activation_backward(z)],
    "attention_forward": lambda z, memory: [attention_forward(z, 0), attention_forward(z, memory)],
    "attention_backward": lambda z, memory: [attention_backward(z, memory)],
    "head_norm_forward": lambda z, memory: [head_norm_forward(z)],
    "memory_advance": lambda z, memory: [memory_advance(z, memory)],
    "embedding_forward": lambda z, memory: [embedding_forward(z)],
    "update": lambda z, memory: [update(z)],
}
