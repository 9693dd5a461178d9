"""A layer of the gated delta rule in attention's place, between the linears that it reads and the one behind it.

    [queries keys values | z | b | a]  from the linears in front, side by side
    queries, keys, values              their short convolution over the last tokens (ops/short_convolution.py)
    g, beta                            decay and rate from a and b (ops/delta_gates.py)
    o                                  the delta rule's read-out, state carried on (ops/delta_rule.py)
    y                                  every head of o normalised, times SiLU of z (ops/gated_norm.py)

Without a segment memory the state is zero where a segment begins; with one it is the stream's, and what it becomes waits in a buffer
until the memory advances.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dynadapt.model import ModelConfig
from dynadapt.ops import delta_rule
from dynadapt.ops.precision import wide_dtype

LENGTH_EPS = 1e-6  # added to the squared length of queries and keys


class DeltaMixer:
    """Forward and backward of such layers over the ops; see ``Decoder`` for the arguments."""

    def __init__(self, config: ModelConfig, ops, workspace):
        assert config.delta is not None, "a model without such layers has no use for their mixer"
        self.delta, self.eps, self.ops, self.ws = config.delta, config.norm_eps, ops, workspace
        self.wide = wide_dtype(ops.dtype)
        self.parts = [self.delta.channels, self.delta.values, self.delta.value_heads, self.delta.value_heads]
        self.rule = (*self.delta.heads, self.delta.key_dim**-0.5, LENGTH_EPS)

    def _stat(self, name, *shape) -> torch.Tensor:
        return self.ws(name, *shape, dtype=self.wide)

    def states(self, streams: int) -> torch.Tensor:
        """Where all layers' states behind the segment are [L, S, hv, dk, dv]."""
        d = self.delta
        return self._stat("delta states of all layers", sum(d.layers), streams, d.value_heads, d.key_dim, d.value_dim)

    def rows(self, streams: int) -> torch.Tensor:
        """Where all layers' last inputs of the convolution are [L, S, W - 1, C]."""
        return self.ws("delta rows of all layers", sum(self.delta.layers), streams, self.delta.taps - 1, self.delta.channels)

    @staticmethod
    def _remembered(batch, memory, place):
        """(state, the convolution's rows) before the segment, and what says whose they are: slots and lengths."""
        if memory is None:
            return None, None, batch.memory_slots, None
        return memory.delta.states[place], memory.delta.rows[place], batch.memory_slots, batch.lengths

    def forward(self, batch, memory, place: int, raw: torch.Tensor, weights, key, count: Callable[[int], None]):
        """(y [N, hv dv], what backward needs) from raw [N, channels + values + 2 hv].

        ``memory``: the ``MemoryState`` in use or None; ``place``: the layer's number among its kind; ``weights``: its ``DeltaTensors``.
        """
        d, n = self.delta, raw.shape[0]
        mixed, z, b, a = raw.split(self.parts, 1)
        state, rows, slots, lengths = self._remembered(batch, memory, place)
        streams = len(batch.streams)
        final = (None, None) if memory is None else (self.states(streams)[place], self.rows(streams)[place])
        qkv = self.ws(("delta qkv", key), n, d.channels)
        self.ops.short_convolution_forward(mixed, weights.taps, rows, slots, lengths, qkv, final[1])
        g, beta = (self._stat((f"delta {name}", key), n, d.value_heads) for name in ("decay", "rate"))
        self.ops.delta_gates_forward(a, b, weights.a_log, weights.dt_bias, g, beta)
        out = self.ws(("delta out", key), n, d.values)
        self.ops.delta_rule_forward(qkv, g, beta, state, slots, lengths, *self.rule, out, final[0])
        count(delta_rule.forward_flops(n, d.value_heads, d.key_dim, d.value_dim))
        y, rstd = self.ws(("delta normed", key), n, d.values), self._stat(("delta stat", key), n, d.value_heads)
        self.ops.gated_norm_forward(out, z, weights.norm, self.eps, d.value_dim, y, rstd)
        return y, {"raw": raw, "qkv": qkv, "g": g, "beta": beta, "out": out, "rstd": rstd}

    def backward(self, batch, memory, place: int, kept: dict, weights, dy: torch.Tensor, ledger, dnorm=None) -> torch.Tensor:
        """The gradient of raw from that of y; none reaches what the memory held. ``dnorm`` [dv]: the norm's weight's is added to it."""
        d, n = self.delta, dy.shape[0]
        mixed, z, b, a = kept["raw"].split(self.parts, 1)
        state, rows, slots, lengths = self._remembered(batch, memory, place)
        draw = self.ws("delta draw", n, sum(self.parts))
        dmixed, dz, db, da = draw.split(self.parts, 1)
        dout = self.ws("delta dout", n, d.values)
        self.ops.gated_norm_backward(dy, kept["out"], z, weights.norm, kept["rstd"], d.value_dim, dout, dz, dnorm)
        dqkv = self.ws("delta dqkv", n, d.channels)
        dg, dbeta = (self._stat(f"delta d{name}", n, d.value_heads) for name in ("decay", "rate"))
        gates = kept["g"], kept["beta"]
        self.ops.delta_rule_backward(dout, kept["qkv"], *gates, state, slots, lengths, *self.rule, dqkv, dg, dbeta)
        again, back = delta_rule.backward_flops(n, d.value_heads, d.key_dim, d.value_dim)
        ledger.add("recompute", again)
        ledger.add("backward", back)
        self.ops.delta_gates_backward(dg, dbeta, a, b, weights.a_log, weights.dt_bias, da, db, None, None)
        self.ops.short_convolution_backward(dqkv, mixed, weights.taps, rows, slots, lengths, dmixed, None)
        return draw
