"""Every op of the step at a model's sizes: its arguments, and the bytes and FLOPs it cannot avoid.

Bytes are each input read once and each output written once; FLOPs come from the op's own formula. ``check`` holds a case against
the float64 reference: no further off than plain torch in the same dtype, plus a little. It is run on few rows, because that
reference is not small.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from dynadapt.adapt.optimizers import SGD, Adam
from dynadapt.model import ModelConfig, rope_tables
from dynadapt.ops import attention, cross_entropy, linear, linear_mse, make_matrix, make_parts, resolve, weight_gradient
from dynadapt.ops import lora_gradient as op_lora
from dynadapt.ops.update import UpdateState

RANK = 16
BF16 = torch.bfloat16
# Allowed beyond torch's own error, in units of the true values' norm.
TOLERANCE = {torch.float32: 2.4e-6, torch.bfloat16: 2.0**-10}


@dataclass
class Weight:
    """A frozen weight [N, K]: a matrix of the backend in the call."""

    tensor: torch.Tensor


@dataclass
class Out:
    """An output as it stands before the call; ``wide`` ones stay float32 whatever the activations are."""

    tensor: torch.Tensor
    wide: bool = False


@dataclass
class Case:
    """``arguments`` in the op's order, outputs marked Out."""

    op: str
    label: str
    arguments: list
    bytes: int
    flops: int = 0
    slack: float = 1.0


class Sizes:
    """One model's widths at S streams of T tokens, on one device."""

    def __init__(self, config: ModelConfig, streams: int, segment: int, device: str):
        self.c = config
        self.S, self.T, self.N, self.device = streams, segment, streams * segment, device
        q, kv = self.c.heads * self.c.head_dim, self.c.kv_heads * self.c.head_dim
        h, f = self.c.hidden_size, self.c.ffn_size
        self.groups = {"qkv": (h, [q, kv, kv]), "o": (q, [h]), "mlp_in": (h, [f, f]), "down": (f, [h])}
        self.slots = torch.arange(streams, dtype=torch.int32, device=device).flip(0).contiguous()

    def randn(self, *shape, scale=1.0, dtype=BF16):
        return (scale * torch.randn(shape, device=self.device)).to(dtype)

    def out(self, *shape, wide=False):
        return Out(torch.full(shape, float("nan"), dtype=torch.float32 if wide else BF16, device=self.device), wide)

    def sum(self, *shape):
        """An output that is added to."""
        return Out(torch.zeros(shape, device=self.device), wide=True)


class _Call:
    """How arguments are made for one run: values rounded to bfloat16 so that all runs see the same, strides kept."""

    def __init__(self, backend: str, dtype: torch.dtype, device: str):
        self.backend, self.dtype, self.device = backend, dtype, device
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32

    def __call__(self, value):
        if isinstance(value, UpdateState):
            return replace(value, **{f.name: self(getattr(value, f.name)) for f in fields(value)})
        if isinstance(value, list) and value and isinstance(value[0], Weight):
            return make_parts([w.tensor for w in value], self.backend, self.dtype, self.device)
        if isinstance(value, list):
            return [self(v) for v in value]
        if isinstance(value, Weight):
            return make_matrix(value.tensor, self.backend, self.dtype, self.device)
        if isinstance(value, Out):
            return value.tensor.clone().to(self.device, self.wide if value.wide else self.dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            kind = value.dtype if value.dtype == torch.float32 and self.dtype != torch.float64 else self.dtype
            return torch.empty_strided(value.shape, value.stride(), dtype=kind, device=self.device).copy_(value)
        if isinstance(value, torch.Tensor):
            return value.to(self.device).clone()  # counters that an op moves on start anew in each run
        return value


def outputs(argument, built):
    """The tensors of ``built`` that the op writes."""
    if isinstance(argument, Out):
        yield built
    elif isinstance(argument, list):
        for a, b in zip(argument, built):
            yield from outputs(a, b)
    elif isinstance(argument, UpdateState):
        for f in fields(argument):
            yield from outputs(getattr(argument, f.name), getattr(built, f.name))


def materialise(case: Case, backend: str, dtype: torch.dtype, device: str) -> list:
    """The arguments of a call."""
    make = _Call(backend, dtype, device)
    return [make(a) for a in case.arguments]


def run(case: Case, function, backend: str, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """The outputs of one call."""
    call = materialise(case, backend, dtype, device)
    function(*call)
    return [out for a, built in zip(case.arguments, call) for out in outputs(a, built)]


def check(case: Case, backend: str, dtype: torch.dtype, device: str) -> float:
    """The largest relative error of the op's outputs (2-norm, against float64).

    Raises:
        AssertionError: one is further off than plain torch in the same dtype, beyond the tolerance.
    """
    runs = [(backend, dtype), ("reference", dtype), ("reference", torch.float64)]
    ours, plain, truth = (run(case, resolve(case.op, name, kind).function, name, kind, device) for name, kind in runs)
    worst = 0.0
    for i, (o, p, t) in enumerate(zip(ours, plain, truth)):
        size = t.norm().item() or 1.0
        error, yardstick = ((v.double() - t).norm().item() / size for v in (o, p))
        bound = yardstick + case.slack * TOLERANCE[dtype]
        assert error <= bound, f"{case.op} {case.label}: output {i} is off by {error:.3g}, plain torch allows {bound:.3g}"
        worst = max(worst, error)
    return worst


def agrees(case: Case, function, backend: str, dtype: torch.dtype, device: str) -> float | None:
    """The largest relative difference (2-norm) to the plain reference in the same dtype. None where that does not fit in memory.

    Raises:
        AssertionError: it is more than rounding.
    """
    ours = run(case, function, backend, dtype, device)
    try:
        plain = run(case, resolve(case.op, "reference", dtype).function, "reference", dtype, device)
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
    arguments = [x, weights, None, a, bt, z.slots, 2.0, z.out(z.N, p * RANK), z.out(z.N, o)]
    return Case("linear_forward", group, arguments, moved, linear.forward_flops(z.N, k, parts, RANK))


def linear_backward(z, group):
    k, parts = z.groups[group]
    o, p = sum(parts), len(parts)
    weights = [Weight(z.randn(n, k, scale=k**-0.5)) for n in parts]
    a, bt = _adapter(z, k, parts)
    dy = z.randn(z.N, o)
    moved = 2 * (z.N * (k + o + p * RANK) + o * k) + _adapter_bytes(z, k, parts)
    arguments = [dy, weights, a, bt, z.slots, 2.0, z.out(z.N, p * RANK), z.out(z.N, k)]
    return Case("linear_backward", group, arguments, moved, linear.backward_flops(z.N, k, parts, RANK))


def lora_gradient(z, group):
    k, parts = z.groups[group]
    o, p = sum(parts), len(parts)
    dy, x, u, du = z.randn(z.N, o), z.randn(z.N, k), z.randn(z.N, p * RANK), z.randn(z.N, p * RANK)
    moved = 2 * z.N * (o + k + 2 * p * RANK) + 2 * _adapter_bytes(z, k, parts)
    arguments = [dy, x, u, du, parts, 2.0, z.slots, z.out(z.S, p * RANK, k, wide=True), z.out(z.S, RANK, o, wide=True), False]
    return Case("lora_gradient", group, arguments, moved, op_lora.flops(z.N, k, parts, RANK))


def lora_gradient_update(z, group):
    """The gradient of ``lora_gradient`` applied at once by SGD with momentum."""
    gradient = lora_gradient(z, group)
    dy, x, u, du, parts, scale, slots = gradient.arguments[:7]
    k = x.shape[1]

    def state(*shape):
        master, first = (z.randn(z.S, *shape, scale=0.02, dtype=torch.float32) for _ in range(2))
        return UpdateState(Out(master, True), working=z.out(z.S, *shape), first=Out(first, True))

    moving, skipped = torch.ones_like(slots), torch.zeros_like(slots)
    lr = torch.full((z.S,), 1e-3, device=z.device)
    arguments = [
        dy,
        x,
        u,
        du,
        parts,
        scale,
        slots,
        moving,
        state(len(parts) * RANK, k),
        state(RANK, sum(parts)),
        SGD(momentum=0.9, clip=0.0).rule(),
        lr,
        skipped,
    ]
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
    arguments = [dy, x, rows, z.out(n, k, wide=True), False]
    return Case("weight_gradient", f"{group} {share:.0%} of rows", arguments, moved, weight_gradient.flops(z.N, n, k))


# ---- head


def head(z, gradient):
    n, h, v = z.N, z.c.hidden_size, z.c.vocab_size
    x, w = z.randn(n, h), z.randn(v, h, scale=h**-0.5)
    targets = torch.randint(v, (n,), device=z.device)
    weights = torch.full((n,), 1.0 / z.T, device=z.device)
    moved = 2 * (n * h * (2 if gradient else 1) + v * h) + 16 * n
    arguments = [x, Weight(w), targets, weights, z.out(n, wide=True), z.out(n, wide=True), z.out(n, h) if gradient else None]
    label = "score and gradient" if gradient else "score"
    return Case("cross_entropy", label, arguments, moved, cross_entropy.flops(n, h, v, gradient))


def head_weight_gradient(z):
    n, h, v = z.N, z.c.hidden_size, z.c.vocab_size
    x, w = z.randn(n, h), z.randn(v, h, scale=h**-0.5)
    targets, weights = torch.randint(v, (n,), device=z.device), torch.full((n,), 1.0 / z.T, device=z.device)
    lse = torch.logsumexp(x.float() @ w.float().t(), 1)
    moved = 2 * (n * h + v * h) + 4 * v * h + 16 * n
    arguments = [x, Weight(w), targets, weights, lse, z.out(v, h, wide=True), False]
    return Case("cross_entropy_weight_gradient", "", arguments, moved, sum(cross_entropy.weight_gradient_flops(n, h, v)))


# ---- the rest


def norm_forward(z):
    n, h = z.N, z.c.hidden_size
    x, delta, weight = z.randn(n, h), z.randn(n, h), z.randn(h)
    arguments = [x, delta, weight, None, 1e-5, "rms", z.out(n, h), z.out(n, h), z.out(n, 2, wide=True)]
    return Case("norm_forward", "rms", arguments, 8 * n * h)


def norm_backward(z):
    n, h = z.N, z.c.hidden_size
    res = z.randn(n, h)
    stat = torch.stack([torch.zeros(n, device=z.device), torch.rsqrt(res.float().square().mean(1) + 1e-5)], 1)
    arguments = [z.randn(n, h), res, z.randn(h), stat, "rms", z.randn(n, h), z.out(n, h), None, None]
    return Case("norm_backward", "rms", arguments, 8 * n * h)


def activation_forward(z):
    n, f = z.N, z.c.ffn_size
    return Case("activation_forward", "swiglu", [z.randn(n, 2 * f), "swiglu", z.out(n, f)], 6 * n * f)


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
    arguments = [qkv, *rest, z.out(n, q), z.out(z.S, c.heads, z.T, wide=True)]
    return Case(
        "attention_forward",
        f"memory {memory}",
        arguments,
        2 * (n * (2 * q + 2 * kv) + 2 * z.S * memory * kv),
        z.S * attention.forward_flops(z.T, memory, c.heads, c.head_dim) - causal,
    )


def attention_backward(z, memory):
    c = z.c
    qkv, rest = _attention_inputs(z, memory)
    n, q, kv = z.N, c.heads * c.head_dim, c.kv_heads * c.head_dim
    out, lse = z.randn(n, q), torch.empty(z.S, c.heads, z.T, device=z.device)
    ours = "cpu" if qkv.device.type == "cpu" else "triton"
    backend = ours if n > 4096 else "reference"  # large: our own forward, which was checked as a case of its own
    resolve("attention_forward", backend, BF16).function(qkv, *rest, out, lse)
    causal = 5 * z.S * z.T * (z.T - 1) * c.heads * c.head_dim
    flops = z.S * sum(attention.backward_flops(z.T, memory, c.heads, c.head_dim)) - causal
    arguments = [z.randn(n, q), qkv, out, lse, *rest, z.out(n, q + 2 * kv)]
    return Case("attention_backward", f"memory {memory}", arguments, 2 * (n * (4 * q + 4 * kv) + 2 * z.S * memory * kv), flops)


def head_norm_forward(z):
    c, n = z.c, z.N
    qkv, d = z.randn(n, (c.heads + 2 * c.kv_heads) * c.head_dim), c.head_dim
    arguments = [qkv, z.randn(d), z.randn(d), 1e-6, c.heads, c.kv_heads, d, z.out(*qkv.shape), z.out(n, c.heads + c.kv_heads, wide=True)]
    return Case("head_norm_forward", "", arguments, 4 * qkv.numel())


def head_norm_backward(z):
    c, n, d = z.c, z.N, z.c.head_dim
    dout, qkv = (z.randn(n, (c.heads + 2 * c.kv_heads) * d) for _ in range(2))
    keys = qkv.view(n, -1, d)[:, : c.heads + c.kv_heads].float()
    rstd = torch.rsqrt(keys.square().mean(2) + 1e-6)
    arguments = [dout, qkv, z.randn(d), z.randn(d), rstd, c.heads, c.kv_heads, d, z.out(*qkv.shape), None, None]
    return Case("head_norm_backward", "", arguments, 6 * qkv.numel())


def bias_gradient(z):
    dy = z.randn(z.N, sum(z.groups["qkv"][1]))
    return Case("bias_gradient", "qkv", [dy, z.sum(dy.shape[1])], 2 * dy.numel() + 8 * dy.shape[1])


def row_scores(z):
    k, parts = z.groups["mlp_in"]
    dy, x = z.randn(z.N, sum(parts)), z.randn(z.N, k)
    return Case("row_scores", "mlp_in", [dy, x, z.out(sum(parts), wide=True)], 2 * z.N * (k + sum(parts)) + 4 * sum(parts))


def linear_mse_case(z):
    n, h = z.N, z.c.hidden_size
    target = z.randn(n, dtype=torch.float32)
    arguments = [
        z.randn(n, h),
        z.randn(h, scale=h**-0.5),
        None,
        target,
        torch.full_like(target, 1 / n),
        z.out(n, wide=True),
        z.out(n, wide=True),
        z.out(n, h),
        z.sum(h),
        None,
    ]
    return Case("linear_mse", "score and gradients", arguments, 4 * n * h + 16 * n, linear_mse.flops(n, h, True))


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


def embedding_backward(z):
    n, h, v = z.N, z.c.hidden_size, z.c.vocab_size
    tokens = torch.randint(v, (n,), device=z.device)
    touched = len(tokens.unique())  # rows of the table that are read and written
    return Case("embedding_backward", "", [tokens, z.randn(n, h), z.sum(v, h)], 2 * n * h + 8 * n + 8 * touched * h)


def update(z):
    """Adam with clip over all adapters of every stream."""
    per = z.c.layers * sum(RANK * (len(parts) * k + sum(parts)) for k, parts in z.groups.values())
    shape, dev = (z.S, per), z.device
    f32 = lambda scale: z.randn(*shape, scale=scale, dtype=torch.float32)  # noqa: E731
    master, grad, first = Out(f32(0.02), True), Out(f32(1e-3), True), Out(f32(1e-3), True)
    second = Out(f32(1e-3).square(), True)
    lr, step = torch.full((z.S,), 2e-3, device=dev), torch.full((z.S,), 3, dtype=torch.int32, device=dev)
    skipped = torch.zeros(z.S, dtype=torch.int32, device=dev)
    state = UpdateState(master, grad=grad, first=first, second=second, working=z.out(*shape), step=step)
    arguments = [state, Adam(clip=1.0).rule(), z.slots, lr, z.out(z.S, wide=True), skipped]
    # read master, gradient twice (norm, then use), both moments; write master, moments, zero gradient, bf16 copy
    return Case("update", "adam, clip", arguments, z.S * per * (4 * 5 + 4 * 4 + 2))


LINEAR = {
    "linear_forward": linear_forward,
    "linear_backward": linear_backward,
    "lora_gradient": lora_gradient,
    "lora_gradient_update": lora_gradient_update,
}
OPS = {
    **{name: (lambda make: lambda z, memory: [make(z, g) for g in z.groups])(make) for name, make in LINEAR.items()},
    "weight_gradient": lambda z, memory: [weight_gradient_case(z, "mlp_in", share) for share in (0.1, 1)],
    "cross_entropy": lambda z, memory: [head(z, True), head(z, False)],
    "cross_entropy_weight_gradient": lambda z, memory: [head_weight_gradient(z)],
    "norm_forward": lambda z, memory: [norm_forward(z)],
    "norm_backward": lambda z, memory: [norm_backward(z)],
    "activation_forward": lambda z, memory: [activation_forward(z)],
    "activation_backward": lambda z, memory: [activation_backward(z)],
    "attention_forward": lambda z, memory: [attention_forward(z, 0), attention_forward(z, memory)],
    "attention_backward": lambda z, memory: [attention_backward(z, memory)],
    "head_norm_forward": lambda z, memory: [head_norm_forward(z)],
    "head_norm_backward": lambda z, memory: [head_norm_backward(z)],
    "bias_gradient": lambda z, memory: [bias_gradient(z)],
    "row_scores": lambda z, memory: [row_scores(z)],
    "linear_mse": lambda z, memory: [linear_mse_case(z)],
    "memory_advance": lambda z, memory: [memory_advance(z, memory)],
    "embedding_forward": lambda z, memory: [embedding_forward(z)],
    "embedding_backward": lambda z, memory: [embedding_backward(z)],
    "update": lambda z, memory: [update(z)],
}
