"""The decoder's forward and backward passes over the ops, for a batch of streams.

``Decoder`` knows the order of the layers and which activations backward needs; it does not know when to learn, what a
document is or what a score is for. Activations that backward will read are kept per layer, all others share buffers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from .adapt.what import GROUPS
from .memory import MemoryState
from .model import ModelConfig, layout
from .ops import attention, linear, make_matrix, resolve, weight_gradient
from .ops.precision import wide_dtype


class OpSet:
    """The ops of one backend and dtype, resolved when first used; with ``timed`` it adds up seconds by op."""

    def __init__(self, backend: str, dtype: torch.dtype):
        self.backend, self.dtype = backend, dtype
        self.choices = {}
        self.seconds: dict[str, float] | None = None

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        choice = self.choices.get(name) or self.choices.setdefault(name, resolve(name, self.backend, self.dtype))
        return choice.function if self.seconds is None else self._timed(name, choice.function)

    def _timed(self, name, function):
        def call(*args):
            start = time.perf_counter()
            function(*args)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return call


def group_sizes(config: ModelConfig) -> dict[tuple[int, str], tuple[int, tuple[int, ...]]]:
    """{(layer, group): (K, part sizes)} in forward order."""
    q, kv, h, f = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.hidden_size, config.ffn_size
    parts = layout(config)
    sizes = {
        "qkv": (h, (q, kv, kv) if len(parts["qkv"]) == 3 else (q + 2 * kv,)),
        "o": (q, (h,)),
        "mlp_in": (h, (f,) * len(parts["mlp_in"])),
        "down": (f, (h,)),
    }
    return {(i, g): sizes[g] for i in range(config.layers) for g in GROUPS}


def source_weight(model, layer: int, group: str, part: int) -> torch.Tensor:
    """The prior weight [O, K] of one part of a linear group."""
    return model.tensor(f"layers.{layer}.{layout(model.config)[group][part]}.weight")


class FrozenWeights:
    """The model's weights in the backend's form; ``own`` are the groups that a learner holds itself."""

    def __init__(self, model, backend: str, dtype: torch.dtype, own: set[tuple[int, str]]):
        c = model.config
        names = set(model.names())
        load = lambda name: model.tensor(name).to(dtype).contiguous()  # noqa: E731
        optional = lambda name: load(name) if name in names else None  # noqa: E731
        matrix = lambda name: make_matrix(model.tensor(name), backend, dtype)  # noqa: E731
        self.parts, self.bias = {}, {}
        for (layer, group), (_, sizes) in group_sizes(c).items():
            stems = [f"layers.{layer}.{part}" for part in layout(c)[group]]
            self.parts[layer, group] = None if (layer, group) in own else [matrix(f"{s}.weight") for s in stems]
            biases = [optional(f"{s}.bias") for s in stems]
            if any(b is not None for b in biases):
                filled = [torch.zeros(n, dtype=dtype) if b is None else b for b, n in zip(biases, sizes)]
                self.bias[layer, group] = torch.cat(filled)
        norm = lambda stem: (load(f"{stem}.weight"), optional(f"{stem}.bias"))  # noqa: E731
        self.attn_norm = [norm(f"layers.{i}.attn_norm") for i in range(c.layers)]
        self.mlp_norm = [norm(f"layers.{i}.mlp_norm") for i in range(c.layers)]
        self.final_norm = norm("norm")
        self.head_norm = [(load(f"layers.{i}.q_norm.weight"), load(f"layers.{i}.k_norm.weight")) if c.qk_norm else None
                          for i in range(c.layers)]
        self.head = matrix("embed.weight" if c.tied_head else "head.weight")
        self.positions = optional("positions.weight")
        # a tied head without learned positions serves the look-up too: one copy of the largest matrix
        self.table = None if c.tied_head and self.positions is None else load("embed.weight")


@dataclass
class Batch:
    """One pass: inputs int64 [S, T]; whose adapter and whose memory each row uses."""

    inputs: torch.Tensor
    adapter_slots: torch.Tensor  # int32 [S], or [1] when all rows share one
    memory_slots: torch.Tensor  # int32 [S]
    recomputed: float = 0.0  # share of the rows that were scored before (overlapping windows)

    @property
    def rows(self) -> int:
        return self.inputs.numel()


class Decoder:
    """Forward and backward through the layers."""

    def __init__(self, config: ModelConfig, weights: FrozenWeights, ops: OpSet, workspace, ledger, rope,
                 memory: MemoryState | None, scale: float):
        self.config, self.weights, self.ops, self.ws, self.ledger = config, weights, ops, workspace, ledger
        self.cos, self.sin = rope
        self.memory = memory
        self.lora_scale = scale
        self.sizes = group_sizes(config)
        self.stat_dtype = wide_dtype(ops.dtype)
        self.attention_scale = config.head_dim**-0.5

    # ---- helpers

    def _stat(self, name, *shape):
        return self.ws(name, *shape, dtype=self.stat_dtype)

    def _count_forward(self, batch: Batch, flops: int) -> None:
        again = round(flops * batch.recomputed)
        self.ledger.add("forward", flops - again)
        self.ledger.add("recompute", again)

    def _parts(self, learner, layer, group):
        own = learner.parts(layer, group) if learner is not None and learner.owns_weights else None
        return own if own is not None else self.weights.parts[layer, group]

    def _linear(self, learner, layer, group, x, slots, key, count):
        """y [N, O] of one group; keeps u = x A^T under the same key for backward."""
        k, parts = self.sizes[layer, group]
        A, Bt = (None, None) if learner is None else learner.adapter(layer, group)
        rank = 0 if A is None else Bt.shape[1]
        y = self.ws((group, key), x.shape[0], sum(parts))
        u = None if A is None else self.ws((group, "u", key), x.shape[0], len(parts) * rank)
        self.ops.linear_forward(x, self._parts(learner, layer, group), self.weights.bias.get((layer, group)), A, Bt,
                                slots, self.lora_scale, u, y)
        count(linear.forward_flops(x.shape[0], k, parts, rank))
        return y

    def _norm(self, x, delta, norm, key):
        """(res, y) of the norm behind a residual add; res is x itself when there is nothing to add."""
        n, h = x.shape
        res = x if delta is None else self.ws(("res", key), n, h)
        y = self.ws(("norm", key), n, h)
        self.ops.norm_forward(x, delta, norm[0], norm[1], self.config.norm_eps, self.config.norm,
                              None if delta is None else res, y, self._stat(("stat", key), n, 2))
        return res, y

    # ---- forward

    def embed(self, batch: Batch) -> torch.Tensor:
        c, tokens = self.config, batch.inputs.reshape(-1)
        x = self.ws("embedded", batch.rows, c.hidden_size)
        if self.weights.table is None:
            self.weights.head.gather_rows(tokens, x)
            return x
        positions = None
        if self.weights.positions is not None:
            positions = torch.arange(batch.inputs.shape[1]).repeat(batch.inputs.shape[0])
        self.ops.embedding_forward(tokens, self.weights.table, self.weights.positions, positions, x)
        return x

    def forward(self, batch: Batch, learner, lowest) -> torch.Tensor:
        """Hidden states [N, H] after the final norm. ``lowest``: (layer, group) down to which backward will go, or None."""
        first_kept = self.config.layers if lowest is None else lowest[0]
        x, delta = self.embed(batch), None
        self.kept, self.lengths = [], self._memory_lengths(batch)
        for i in range(self.config.layers):
            key = i if i >= first_kept else "shared"
            x, delta = self._layer(batch, learner, i, key, x, delta)
        res, hidden = self._norm(x, delta, self.weights.final_norm, "final")
        self.final = res
        return hidden

    def _layer(self, batch, learner, i, key, x, delta):
        """One decoder layer: returns (residual, what is still to be added to it)."""
        count = lambda flops: self._count_forward(batch, flops)  # noqa: E731
        w, slots = self.weights, batch.adapter_slots
        res1, n1 = self._norm(x, delta, w.attn_norm[i], ("attn", key))
        qkv_key = i if self.memory is not None else key
        raw = self._linear(learner, i, "qkv", n1, slots, qkv_key, count)
        qkv = self._head_norm(i, raw, qkv_key)
        inputs = None
        if self.memory is not None and self.memory.inputs is not None:
            self._reproject(batch, learner, i)
            inputs = self.ws(("input", i), *res1.shape).copy_(res1)
        out = self._attention(batch, i, qkv, key, count)
        o = self._linear(learner, i, "o", out, slots, key, count)
        res2, n2 = self._norm(res1, o, w.mlp_norm[i], ("mlp", key))
        h = self._linear(learner, i, "mlp_in", n2, slots, key, count)
        y = self.ws(("act", key), batch.rows, self.config.ffn_size)
        self.ops.activation_forward(h, self.config.activation, y)
        down = self._linear(learner, i, "down", y, slots, key, count)
        self.kept.append({"res1": res1, "n1": n1, "raw": raw, "qkv": qkv, "out": out, "res2": res2, "n2": n2, "h": h, "y": y,
                          "input": inputs})
        return res2, down

    def _head_norm(self, i, raw, key):
        """qkv with normalised query and key heads (Qwen3), or as it is."""
        if self.weights.head_norm[i] is None:
            return raw
        c = self.config
        qkv = self.ws(("normed qkv", key), *raw.shape)
        rstd = self._stat(("head stat", key), raw.shape[0], c.heads + c.kv_heads)
        self.ops.head_norm_forward(raw, *self.weights.head_norm[i], c.norm_eps, c.heads, c.kv_heads, c.head_dim, qkv, rstd)
        return qkv

    def _window(self, i):
        """(keys, values, lengths) of one layer's memory, or three Nones."""
        m = self.memory
        return (None, None, None) if m is None else (m.keys[i].rows, m.values[i].rows, m.length)

    def _memory_lengths(self, batch) -> list[int]:
        """Entries that each stream's memory holds; it moves on only after backward."""
        if self.memory is None:
            return [0] * len(batch.memory_slots)
        return self.memory.length[batch.memory_slots.long()].tolist()

    def _attention(self, batch, i, qkv, key, count):
        c, (streams, segment) = self.config, batch.inputs.shape
        out = self.ws(("attention", key), batch.rows, c.heads * c.head_dim)
        lse = self._stat(("lse", key), streams, c.heads, segment)
        self.ops.attention_forward(qkv, *self._window(i), batch.memory_slots, self.cos, self.sin, c.heads, c.kv_heads,
                                   c.head_dim, self.attention_scale, out, lse)
        count(sum(attention.forward_flops(segment, m, c.heads, c.head_dim) for m in self.lengths))
        return out

    def _reproject(self, batch, learner, i) -> None:
        """Memory keys and values of one layer from its kept inputs and the current weights (counted as recompute)."""
        c, m = self.config, self.memory
        longest = max(self.lengths)
        if not longest:
            return
        slots = batch.memory_slots.long()
        x = m.inputs[i].rows[slots, :longest].reshape(-1, c.hidden_size)
        _, n = self._norm(x, None, self.weights.attn_norm[i], "memory")
        again = lambda flops: self.ledger.add("recompute", flops)  # noqa: E731
        raw = self._linear(learner, i, "qkv", n, batch.adapter_slots, "memory", again)
        qkv = self._head_norm(i, raw, "memory").view(len(slots), longest, -1)
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        m.keys[i].rows[slots, :longest] = qkv[:, :, q : q + kv]
        m.values[i].rows[slots, :longest] = qkv[:, :, q + kv :]

    # ---- memory

    def advance_memory(self, batch: Batch, lengths: list[int]) -> None:
        """The segment's first ``lengths[s]`` rows of each stream enter its memory, detached."""
        if self.memory is None:
            return
        c, (streams, segment) = self.config, batch.inputs.shape
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for i, kept in enumerate(self.kept):
            qkv = kept["qkv"].view(streams, segment, -1)
            inputs = None if kept["input"] is None else kept["input"].view(streams, segment, -1)
            for s, slot in enumerate(batch.memory_slots.tolist()):
                n = lengths[s]
                self.memory.advance(slot, i, qkv[s, :n, q : q + kv], qkv[s, :n, q + kv :],
                                    None if inputs is None else inputs[s, :n])
        for s, slot in enumerate(batch.memory_slots.tolist()):
            self.memory.fill(slot, lengths[s])

    # ---- backward

    def backward(self, batch: Batch, learner, lowest, dhidden: torch.Tensor, accumulate: bool) -> None:
        """Gradients of what learns, from dhidden [N, H]; nothing below ``lowest`` = (layer, group) is computed."""
        d = self._norm_backward(dhidden, self.final, self.weights.final_norm, "final", None)
        for i in reversed(range(lowest[0], self.config.layers)):
            d = self._layer_backward(batch, learner, lowest, i, d, accumulate)
            if d is None:
                return

    def _norm_backward(self, dy, res, norm, key, dres):
        dx = self.ws(("dres", key if key == "final" else key[0]), *dy.shape)  # never the buffer that dres is in
        self.ops.norm_backward(dy, res, norm[0], self._stat(("stat", key), dy.shape[0], 2), self.config.norm, dres, dx, None, None)
        return dx

    def _layer_backward(self, batch, learner, lowest, i, d, accumulate):
        """Gradient of the layer's input residual, or None when nothing below learns."""
        kept, w = self.kept[i], self.weights
        back = lambda group, dy, x: self._linear_backward(batch, learner, lowest, i, group, dy, x, accumulate)  # noqa: E731
        dy = back("down", d, kept["y"])
        if dy is None:
            return None
        dh = self.ws("dh", *kept["h"].shape)
        self.ops.activation_backward(dy, kept["h"], self.config.activation, dh)
        dn2 = back("mlp_in", dh, kept["n2"])
        if dn2 is None:
            return None
        d = self._norm_backward(dn2, kept["res2"], w.mlp_norm[i], ("mlp", i), d)
        dout = back("o", d, kept["out"])
        if dout is None:
            return None
        dqkv = self._attention_backward(batch, i, kept, dout)
        dn1 = back("qkv", dqkv, kept["n1"])
        if dn1 is None:
            return None
        return self._norm_backward(dn1, kept["res1"], w.attn_norm[i], ("attn", i), d)

    def _linear_backward(self, batch, learner, lowest, i, group, dy, x, accumulate):
        """Gradients of one group and its d-input, which is None at ``lowest``."""
        k, parts = self.sizes[i, group]
        A, Bt = learner.adapter(i, group)
        slots, n, rank = batch.adapter_slots, dy.shape[0], 0 if A is None else Bt.shape[1]
        need_dx = (i, group) != lowest
        dU = None if A is None else self.ws((group, "dU"), n, len(parts) * rank)
        dx = self.ws((group, "dx"), n, k) if need_dx else None
        if need_dx or A is not None:
            self.ops.linear_backward(dy, self._parts(learner, i, group), A, Bt, slots, self.lora_scale, dU, dx)
            self.ledger.add("backward", linear.backward_flops(n, k, parts, rank, need_dx))
        if (i, group) in learner.sizes:
            u = None if A is None else self.ws((group, "u", i), n, len(parts) * rank)
            chosen = learner.gradient(self.ops, i, group, dy, x, u, dU, slots, accumulate)
            flops = linear.gradient_flops(n, k, parts, rank) if A is not None else weight_gradient.flops(n, chosen, k)
            self.ledger.add("backward", flops)
        return dx

    def _attention_backward(self, batch, i, kept, dout):
        c, (streams, segment) = self.config, batch.inputs.shape
        dqkv = self.ws("dqkv", *kept["qkv"].shape)
        lse = self._stat(("lse", i), streams, c.heads, segment)
        self.ops.attention_backward(dout, kept["qkv"], kept["out"], lse, *self._window(i), batch.memory_slots, self.cos,
                                    self.sin, c.heads, c.kv_heads, c.head_dim, self.attention_scale, dqkv)
        for m in self.lengths:
            again, back = attention.backward_flops(segment, m, c.heads, c.head_dim)
            self.ledger.add("recompute", again)
            self.ledger.add("backward", back)
        if self.weights.head_norm[i] is None:
            return dqkv
        draw = self.ws("draw", *dqkv.shape)
        rstd = self._stat(("head stat", i), dqkv.shape[0], c.heads + c.kv_heads)
        self.ops.head_norm_backward(dqkv, kept["raw"], *self.weights.head_norm[i], rstd, c.heads, c.kv_heads, c.head_dim,
                                    draw, None, None)
        return draw
