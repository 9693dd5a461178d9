"""The strongest peers we know how to write in torch alone: stacked adapters and bmm, torch.compile, one CUDA graph. Products are cuBLAS's
(stacked-graph, which compiles in less than a minute), or what max-autotune finds fastest (stacked-compile, which may take several).

Adapters of all streams lie in one tensor for each linear group and multiply by bmm; the frozen head's gradient is made in the
forward pass, chunk by chunk, so that logits are never whole; clip and Adam run on flat buffers; the layers' element-wise work is
fused by the compiler; the whole step (forward, score, backward, clip, update, memory) is captured in one CUDA graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from dynadapt.engine.decoder import group_sizes
from dynadapt.model import rope_tables
from dynadapt.model.layout import layout

from .geometry import RANK

SCALE = 2.0
AUTOTUNED = "max-autotune-no-cudagraphs"
CHUNK = 4096  # rows of logits at a time


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def lora_linear(x, weight, a, bt, parts):
    """x [S, T, K], weight [O, K], a [S, P R, K], bt [S, R, O]."""
    u = torch.bmm(x, a.transpose(1, 2))
    low = [torch.bmm(up, b) for up, b in zip(u.split(RANK, 2), bt.split(parts, 2))]
    return F.linear(x, weight) + SCALE * (low[0] if len(low) == 1 else torch.cat(low, 2))


def rotate(x, cos, sin):
    x1, x2 = x.float().chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).to(x.dtype)


def before_attention(x, norm, weight, a, bt, parts, mem_k, mem_v, cos, sin, heads, kv_heads, d, eps):
    """Rotated q [S, hq, T, d], rotated k and v [S, hkv, M + T, d], and the unrotated new keys and values for memory."""
    s, t, _ = x.shape
    qkv = lora_linear(rms_norm(x, norm, eps), weight, a, bt, parts)
    q, k, v = (p.view(s, t, -1, d).transpose(1, 2) for p in qkv.split(parts, 2))
    new_k, new_v = k, v
    if mem_k is not None:
        k, v = torch.cat([mem_k, k], 2), torch.cat([mem_v, v], 2)
    total = k.shape[2]
    return rotate(q, cos[total - t : total], sin[total - t : total]), rotate(k, cos[:total], sin[:total]), v, new_k, new_v


def after_attention(x, out, wo, o_ab, norm, w_in, in_ab, in_parts, w_down, down_ab, eps):
    s, _, t, _ = out.shape
    merged = out.transpose(1, 2).reshape(s, t, -1)
    x = x + lora_linear(merged, wo, *o_ab, [wo.shape[0]])
    gate, up = lora_linear(rms_norm(x, norm, eps), w_in, *in_ab, in_parts).chunk(2, 2)
    return x + lora_linear(F.silu(gate) * up, w_down, *down_ab, [w_down.shape[0]])


def head_chunk(h, weight, targets, share: float):
    """(nll [n], d-hidden [n, H]) of some rows; the logits' gradient takes the logits' place."""
    logits = (h @ weight.t()).float()
    lse = torch.logsumexp(logits, 1)
    nll = lse - logits.gather(1, targets[:, None])[:, 0]
    d = torch.exp(logits - lse[:, None])
    d = torch.where(torch.arange(d.shape[1], device=d.device) == targets[:, None], d - 1, d) * share
    return nll, d.to(h.dtype) @ weight


def adam(master, first, second, grad, step, working, lr: float, clip: float):
    grad = grad * (clip / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
    first.lerp_(grad, 0.1)
    second.lerp_(grad.square(), 0.001)
    master -= lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    working.copy_(master)


class Stacked:
    """``step(tokens [S, T+1]) -> nll [S, T]``."""

    def __init__(
        self,
        model,
        learner,
        streams: int,
        segment: int,
        dtype,
        device: str,
        compiled: bool = True,
        lr: float = 2e-3,
        mode: str | None = AUTOTUNED,
    ):
        self.mode = mode
        self.c = c = model.config
        self.S, self.T, self.dtype, self.device, self.lr = streams, segment, dtype, device, lr
        load = lambda name: model.tensor(name).to(device=device, dtype=dtype)  # noqa: E731
        self.sizes = group_sizes(c)
        self.weights = {(i, g): torch.cat([load(f"layers.{i}.{part}.weight") for part in layout(c)[g]]) for i, g in self.sizes}
        self.norms = [(load(f"layers.{i}.attn_norm.weight"), load(f"layers.{i}.mlp_norm.weight")) for i in range(c.layers)]
        self.final, self.table = load("norm.weight"), load("embed.weight")
        self.head = self.table if c.tied_head else load("head.weight")
        self.cos, self.sin = (t.to(device) for t in rope_tables(c, 2 * segment))
        self._adapters(learner)
        shape = (c.layers, streams, c.kv_heads, segment, c.head_dim)
        self.mem = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv")
        self.functions = {f.__name__: f for f in (before_attention, after_attention, head_chunk, adam)}
        self.compiled, self.steps, self.graph = compiled, 0, None
        self.tokens = torch.zeros(streams, segment + 1, dtype=torch.int64, device=device)

    def _adapters(self, learner) -> None:
        """Flat master and moments; bf16 leaves that are views of one flat working copy."""
        prior = learner.state.prior.to(self.device)
        self.master = prior.expand(self.S, -1).contiguous().float()
        self.first, self.second = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.step_count = torch.zeros((), device=self.device)
        self.working = self.master.to(self.dtype)
        self.leaves, self.spans = {}, []
        for key in self.sizes:
            pair = []
            for name in ("A", "Bt"):
                view = learner.layout.view(self.working, "{}.{}.{}".format(*key, name))
                pair.append(view.detach().requires_grad_())
                start = learner.layout.offsets["{}.{}.{}".format(*key, name)]
                self.spans.append((start, start + view[0].numel()))
            self.leaves[key] = pair

    # ---- one step

    def _hidden(self, memory: bool):
        c, f = self.c, self.functions
        x = self.table[self.tokens[:, :-1]]
        kept = []
        for i in range(c.layers):
            (norm1, norm2), ab = self.norms[i], {g: self.leaves[i, g] for g in ("qkv", "o", "mlp_in", "down")}
            mk, mv = (m[i] if memory else None for m in self.mem)
            q, k, v, new_k, new_v = f["before_attention"](
                x,
                norm1,
                self.weights[i, "qkv"],
                *ab["qkv"],
                list(self.sizes[i, "qkv"][1]),
                mk,
                mv,
                self.cos,
                self.sin,
                c.heads,
                c.kv_heads,
                c.head_dim,
                c.norm_eps,
            )
            mask = causal_lower_right(self.T, k.shape[2]) if memory else None
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not memory, enable_gqa=c.heads != c.kv_heads)
            x = f["after_attention"](
                x,
                out,
                self.weights[i, "o"],
                ab["o"],
                norm2,
                self.weights[i, "mlp_in"],
                ab["mlp_in"],
                list(self.sizes[i, "mlp_in"][1]),
                self.weights[i, "down"],
                ab["down"],
                c.norm_eps,
            )
            kept.append((new_k.detach(), new_v.detach()))
        return rms_norm(x, self.final, c.norm_eps), kept

    def _run(self, memory: bool):
        hidden, kept = self._hidden(memory)
        with torch.no_grad():
            targets = self.tokens[:, 1:].reshape(-1)
            pieces = [
                self.functions["head_chunk"](h, self.head, t, 1.0 / self.T)
                for h, t in zip(hidden.detach().reshape(-1, hidden.shape[2]).split(CHUNK), targets.split(CHUNK))
            ]
            nll, dh = (torch.cat(p) for p in zip(*pieces))
        leaves = [leaf for pair in self.leaves.values() for leaf in pair]
        grads = torch.autograd.grad(hidden, leaves, dh.view_as(hidden))
        with torch.no_grad():
            flat = torch.zeros_like(self.master)
            for grad, (lo, hi) in zip(grads, self.spans):
                flat[:, lo:hi] = grad.reshape(self.S, -1)
            self.step_count += 1
            self.functions["adam"](self.master, self.first, self.second, flat, self.step_count, self.working, self.lr, 1.0)
            for i, (k, v) in enumerate(kept):
                self.mem[0][i].copy_(k)
                self.mem[1][i].copy_(v)
        return nll.view(self.S, self.T)

    def step(self, tokens):
        self.tokens.copy_(tokens)
        self.steps += 1
        if self.steps == 1:
            return self._run(False)  # nothing is remembered yet: once, eager
        if not self.compiled:
            return self._run(True)
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.nll

    def _capture(self) -> None:
        self.functions = {n: torch.compile(f, mode=self.mode, dynamic=False) for n, f in self.functions.items()}
        state = [self.master, self.first, self.second, self.step_count, self.working, *self.mem]
        saved = [t.detach().clone() for t in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run(True)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.nll = self._run(True)
        with torch.no_grad():
            for t, s in zip(state, saved):
                t.copy_(s)
