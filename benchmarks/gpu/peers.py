"""What others offer for single ops. Each is a function that makes a call to time, or says (``Absent``) why it is not there."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Absent(RuntimeError):
    """This peer cannot run on this machine; the message says why."""


def _need(package: str):
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Absent(f"{package} is not installed") from error


# ---- head: the loss and, with ``gradient``, d-hidden; the head itself is frozen


def head_peers(h, weight, targets, gradient: bool) -> dict:
    def autograd(loss_of):
        """A call of one forward, with its backward to the hidden state where asked for."""
        leaf = h.detach().clone().requires_grad_(gradient)

        def call():
            loss = loss_of(leaf)
            if gradient:
                leaf.grad = None
                loss.backward()

        return call

    def eager():
        return autograd(lambda x: F.cross_entropy((x @ weight.t()).float(), targets, reduction="mean"))

    def torch_linear():
        if not hasattr(F, "linear_cross_entropy"):
            raise Absent(f"torch {torch.__version__} has no linear_cross_entropy")
        return autograd(lambda x: F.linear_cross_entropy(x, weight, targets))

    def liger():
        loss = _need("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        return autograd(lambda x: loss(weight, x, targets))

    def cut():
        function = _need("cut_cross_entropy").linear_cross_entropy
        return autograd(lambda x: function(x, weight, targets))

    def quack():
        function = _need("quack.linear_cross_entropy").chunked_linear_cross_entropy
        return autograd(lambda x: function(x, weight, targets))

    return {
        "torch, eager": eager,
        "torch, linear_cross_entropy": torch_linear,
        "liger-kernel": liger,
        "cut-cross-entropy": cut,
        "quack": quack,
    }


# ---- attention


def _sdpa_inputs(z, memory):
    c = z.c
    q = z.draw.acts(z.S, c.heads, z.T, c.head_dim)
    k, v = (z.draw.acts(z.S, c.kv_heads, memory + z.T, c.head_dim) for _ in range(2))
    from torch.nn.attention.bias import causal_lower_right

    mask = causal_lower_right(z.T, memory + z.T) if memory else None
    return q, k, v, dict(attn_mask=mask, is_causal=not memory, enable_gqa=c.heads != c.kv_heads)


def sdpa_forward(z, memory):
    def make():
        q, k, v, options = _sdpa_inputs(z, memory)
        return lambda: F.scaled_dot_product_attention(q, k, v, **options)

    return make


def sdpa_backward(z, memory):
    def make():
        q, k, v, options = _sdpa_inputs(z, memory)
        leaves = [t.requires_grad_() for t in (q, k, v)]
        out = F.scaled_dot_product_attention(*leaves, **options)
        dout = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return make


# ---- update


def fused_adam(streams: int, parameters: int, device: str) -> dict:
    def make():
        p = torch.zeros(streams, parameters, device=device)
        p.grad = torch.randn_like(p)
        return p, torch.optim.Adam([p], lr=torch.tensor(2e-3, device=device), fused=True, capturable=device == "cuda")

    def whole():
        """The same work as ours: clip by stream, step, zeroed gradient, bf16 copy."""
        (p, optimizer), copy = make(), torch.empty(streams, parameters, device=device, dtype=torch.bfloat16)

        def call():
            p.grad.mul_((1.0 / (p.grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))
            optimizer.step()
            p.grad.zero_()
            copy.copy_(p)

        return call

    return {"torch fused Adam alone": lambda: make()[1].step, "torch clip, fused Adam, copy": whole}
