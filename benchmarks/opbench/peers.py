"""What plain torch and other packages offer for single ops on a CPU, on the same numbers.

``PEERS[op](case)`` -> {name: function that makes a call}. A call returns the outputs that it computes as
{name of the op's output: tensor}, for the check. What a peer leaves out of the op's work is said in NOTES.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

NOTES = {
    "weight_gradient": "torch leaves the gradient in bf16; ours is float32",
    "cross_entropy": "peers return the mean loss; ours also gives every token's NLL",
    "attention_forward": "peers get queries and keys already rotated, and memory and segment already in one tensor",
    "attention_backward": "peers get rotated inputs and also compute gradients of the memory, which ours never needs",
    "update": "torch's fused Adam takes no bf16 copy, clip or zeroing by itself: the second peer does the same work as ours",
}


class Absent(RuntimeError):
    """This peer can't run here; the message says why."""


def _compiled(function):
    return torch.compile(function, dynamic=False, fullgraph=True)


def _eager_and_compiled(function, outputs) -> dict:
    """The same function as it is and through torch.compile; ``outputs``: the names of its results among the op's outputs."""

    def make(kind):
        def build():
            call = kind(function)

            def run():
                found = call()
                return dict(zip(outputs, found if isinstance(found, tuple) else (found,)))

            return run

        return build

    return {"torch eager": make(lambda f: f), "torch.compile": make(_compiled)}


def _low_rank(A, Bt, parts):
    """A [P R, K] and the block-diagonal B [P R, O] that a dense framework multiplies with (one stream)."""
    A, Bt, rank = A[0], Bt[0], Bt.shape[1]
    B, column = torch.zeros(A.shape[0], Bt.shape[1], dtype=A.dtype), 0
    for p, size in enumerate(parts):
        B[p * rank : (p + 1) * rank, column : column + size] = Bt[:, column : column + size]
        column += size
    return A, B


def linear_forward(case):
    x, weights, A, Bt, scale = (case[name] for name in ("x", "parts", "A", "Bt", "scale"))
    W = torch.cat(weights)
    A, B = _low_rank(A, Bt, [w.shape[0] for w in weights])
    return _eager_and_compiled(lambda: F.linear(x, W) + scale * (F.linear(x, A) @ B), ("y",))


def linear_backward(case):
    dy, weights, A, Bt, scale = (case[name] for name in ("dy", "parts", "A", "Bt", "scale"))
    W = torch.cat(weights)
    A, B = _low_rank(A, Bt, [w.shape[0] for w in weights])
    return _eager_and_compiled(lambda: dy @ W + scale * (F.linear(dy, B) @ A), ("dx",))


def lora_gradient(case):
    dy, x, u, dU, parts, scale = (case[name] for name in ("dy", "x", "u", "dU", "part_sizes", "scale"))
    rank = u.shape[1] // len(parts)

    def gradient():
        dBt = [u[:, p * rank : (p + 1) * rank].t() @ d for p, d in enumerate(dy.split(parts, 1))]
        return (dU.t() @ x)[None], (scale * torch.cat(dBt, 1))[None]

    return _eager_and_compiled(gradient, ("dA", "dBt"))


def weight_gradient(case):
    dy, x, rows = case["dy"], case["x"], case["rows"]
    index = None if rows is None else rows.long()
    return _eager_and_compiled(lambda: (dy if index is None else dy[:, index]).t() @ x, ("dW",))


def cross_entropy(case):
    h, W, targets = case["h"], case["head"], case["targets"]
    gradient = case["dh"] is not None
    leaf = h.detach().clone().requires_grad_(gradient)

    def with_loss(loss_of, nll_of):
        def build():
            def run():
                if not gradient:
                    return {"nll": nll_of(leaf)} if nll_of else {"mean": loss_of(leaf)}
                leaf.grad = None
                loss_of(leaf).backward()
                return {"dh": leaf.grad}

            return run

        return build

    def logits_loss(x, reduction="mean"):
        return F.cross_entropy((x @ W.t()).float(), targets, reduction=reduction)

    def compiled():
        function = torch.compile(logits_loss, dynamic=False, fullgraph=True)
        return with_loss(function, lambda x: function(x, "none"))()

    def torch_linear():
        if not hasattr(F, "linear_cross_entropy"):
            raise Absent(f"torch {torch.__version__} has no linear_cross_entropy")
        return with_loss(lambda x: F.linear_cross_entropy(x, W, targets), None)()

    def cut():
        try:
            from cut_cross_entropy import linear_cross_entropy
        except ImportError as error:
            raise Absent("cut-cross-entropy is not installed") from error
        return with_loss(lambda x: linear_cross_entropy(x, W, targets, impl="torch_compile"), None)()

    return {
        "torch eager": with_loss(logits_loss, lambda x: logits_loss(x, "none")),
        "torch.compile": compiled,
        "torch linear_cross_entropy": torch_linear,
        "cut-cross-entropy (torch_compile)": cut,
    }


def norm_forward(case):
    x, delta, weight, eps = (case[name] for name in ("x", "delta", "weight", "eps"))

    def norm():
        total = x + delta
        return total, F.rms_norm(total, (x.shape[1],), weight, eps)

    return _eager_and_compiled(norm, ("res", "y"))


def _gradients(function, inputs, dy, extra, output):
    """Eager and compiled backward alone: the forward is run once, its graph kept."""

    def make(kind):
        def build():
            leaves = [t.detach().clone().requires_grad_() for t in inputs]
            y = kind(function)(*leaves)

            def run():
                found = torch.autograd.grad(y, leaves, dy, retain_graph=True)
                return {output: extra(found)}

            return run

        return build

    return {"torch eager": make(lambda f: f), "torch.compile": make(_compiled)}


def norm_backward(case):
    dy, res, weight, dres = (case[name] for name in ("dy", "res", "weight", "dres"))
    return _gradients(lambda x: F.rms_norm(x, (x.shape[1],), weight, 1e-5), [res], dy, lambda g: g[0] + dres, "dx")


def activation_forward(case):
    gate, up = case["h"].chunk(2, 1)
    return _eager_and_compiled(lambda: F.silu(gate) * up, ("y",))


def activation_backward(case):
    dy, h = case["dy"], case["h"]

    def swiglu(x):
        gate, up = x.chunk(2, 1)
        return F.silu(gate) * up

    return _gradients(swiglu, [h], dy, lambda g: g[0], "dh")


def _rotated(qkv, mem_k, mem_v, cos, sin, hq, hkv, d):
    """q [1, hq, T, d] and k, v [1, hkv, M + T, d], keys and queries rotated (one stream, memory full)."""
    from dynadapt.ops.attention import rotate

    heads = qkv.view(qkv.shape[0], hq + 2 * hkv, d).transpose(0, 1)
    q, k, v = heads[:hq], heads[hq : hq + hkv], heads[hq + hkv :]
    if mem_k is not None:
        past = lambda t: t[0].view(t.shape[1], hkv, d).transpose(0, 1)  # noqa: E731
        k, v = torch.cat([past(mem_k), k], 1), torch.cat([past(mem_v), v], 1)
    total, segment = k.shape[1], q.shape[1]
    q = rotate(q.float(), cos[total - segment : total], sin[total - segment : total]).to(qkv.dtype)
    k = rotate(k.float(), cos[:total], sin[:total]).to(qkv.dtype)
    return q[None].contiguous(), k[None].contiguous(), v[None].contiguous()


def _attend(q, k, v):
    from torch.nn.attention.bias import causal_lower_right

    segment, total = q.shape[2], k.shape[2]
    mask = None if segment == total else causal_lower_right(segment, total)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])


ROTATED = ("qkv", "mem_k", "mem_v", "cos", "sin", "hq", "hkv", "d")


def attention_forward(case):
    qkv, *_, hq, hkv, _ = inputs = [case[name] for name in ROTATED]
    rows = lambda out: out[0].transpose(0, 1).reshape(qkv.shape[0], -1)  # noqa: E731

    def sdpa():
        q, k, v = _rotated(*inputs)
        return lambda: {"out": rows(_attend(q, k, v))}

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        q, k, v = _rotated(*inputs)
        memory = k.shape[2] - q.shape[2]
        mask = create_block_mask(lambda b, h, i, j: i + memory >= j, None, None, q.shape[2], k.shape[2], device="cpu")
        function = torch.compile(flex_attention, dynamic=False)
        return lambda: {"out": rows(function(q, k, v, block_mask=mask, enable_gqa=hq != hkv))}

    return {"torch SDPA": sdpa, "torch FlexAttention": flex}


def attention_backward(case):
    dout, qkv, hq, d = (case[name] for name in ("dout", "qkv", "hq", "d"))

    def sdpa():
        leaves = [t.requires_grad_() for t in _rotated(*(case[name] for name in ROTATED))]
        out = _attend(*leaves)
        do = dout.view(-1, hq, d).transpose(0, 1)[None]

        def run():
            dv = torch.autograd.grad(out, leaves, do, retain_graph=True)[2]
            return {"dv": dv[0, :, -qkv.shape[0] :].transpose(0, 1).reshape(qkv.shape[0], -1)}

        return run

    return {"torch SDPA": sdpa}


def update(case):
    master, grad, first, second = (getattr(case["state"], name) for name in ("master", "grad", "first", "second"))

    def optimizer():
        p = master.clone()
        p.grad = grad.clone()
        adam = torch.optim.Adam([p], lr=2e-3, fused=True)
        adam.state[p] = {"step": torch.tensor(3.0), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
        return p, adam

    def alone():
        p, adam = optimizer()
        return lambda: (adam.step(), {})[1]

    def whole():
        p, adam = optimizer()
        copy = torch.empty_like(p, dtype=torch.bfloat16)

        def run():
            p.grad.mul_((1.0 / (p.grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))
            adam.step()
            p.grad.zero_()
            copy.copy_(p)
            return {"state.master": p}

        return run

    return {"torch fused Adam alone": alone, "torch clip, fused Adam, zero, copy": whole}


PEERS = {
    function.__name__: function
    for function in (
        linear_forward,
        linear_backward,
        lora_gradient,
        weight_gradient,
        cross_entropy,
        norm_forward,
        norm_backward,
        activation_forward,
        activation_backward,
        attention_forward,
        attention_backward,
        update,
    )
}
