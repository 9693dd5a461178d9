"""The decoder's passes over the ops, for a batch of streams: forward and score; backward.py is the way back.

``Decoder`` knows the order of the layers and which activations backward needs; it does not know when to learn, what a
document is or what a score is for. Activations that backward will read are kept per layer, all others share buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dynadapt.model import ModelConfig
from dynadapt.ops import attention, linear
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.profiler_ranges import ranged

from . import losses, plain_head
from .adapted_embedding import AdaptedEmbedding
from .adapted_head import AdaptedHead
from .attention_gate import AttentionGate
from .backward import Backward
from .batch import Batch
from .delta_mixer import DeltaMixer
from .dora import Dora
from .gathered_gradients import GatheredGradients
from .group_adapters import adapter_of, flops_of, has_lengths
from .handover import Handover
from .memory import MemoryState
from .op_set import OpSet
from .weights import FrozenWeights, ModelTensors, group_sizes

NOTHING: Mapping[str, torch.Tensor] = {}


class Decoder:
    """Forward and backward through the layers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: FrozenWeights | ModelTensors,
        ops: OpSet,
        workspace,
        ledger,
        rope,
        memory: MemoryState | None,
        recompute: bool = False,
        static: bool = False,
        first: int = 0,
    ):
        self.first = first  # layers below it are another decoder's
        self.config, self.ops, self.ws, self.ledger = config, ops, workspace, ledger
        self.gathered = GatheredGradients(ops, ledger)
        self.weights: Any = weights
        self.rope = rope  # (cos, sin) by layer
        self.memory = memory
        self.recompute = recompute  # norm outputs and activations are made again in backward instead of kept
        self.static = static  # the host must not look at lengths: fixed shapes, memory moved by the device
        self.sizes = group_sizes(config)
        self.count: Any = None if weights.positions is None else torch.arange(len(weights.positions), device=workspace.device)
        self.stat_dtype = wide_dtype(ops.dtype)
        self.heads = config.heads, config.kv_heads, config.head_dim
        self.dora = Dora(self)
        self.gate: Any = AttentionGate(config, ops, workspace) if config.attention_gate else None
        self.delta: Any = None if config.delta is None else DeltaMixer(config, ops, workspace)
        self.attention_layers = [i for i in config.attention_layers if i >= first]
        self.places = {i: place for kind in (self.attention_layers, config.delta_layers) for place, i in enumerate(kind)}
        self.attention_count = len(self.attention_layers)
        self.norm_kind = config.stream_eps, config.norm
        self.normed_heads = sum(n * config.head_dim // w for n, w in zip(self.heads, config.normed_widths))  # each or together, of a row
        self.active: Any = weights  # of the current pass: the learner's own where the whole model learns
        self.loss: Any = None  # of a teacher, in the last pass that had one

    # ---- helpers

    def stat(self, name, *shape):
        return self.ws(name, *shape, dtype=self.stat_dtype)

    def count_forward(self, batch: Batch, flops: int) -> None:
        """In the ledger; of rows that were scored before as done again."""
        again = round(flops * batch.recomputed)
        self.ledger.add("forward", flops - again)
        self.ledger.add("recompute", again)

    def parts(self, learner, layer, group):
        own = learner.parts(layer, group) if learner is not None and learner.owns_weights else None
        return own if own is not None else self.weights.parts[layer, group]

    def _linear(self, learner, layer, group, x, batch, key, count, activated: torch.Tensor | None = None):
        """y [N, O] of one group; keeps u = x A^T under the same key for backward. ``activated`` [N, F]: the activation of y is written there."""
        A, Bt, scale, width = adapter_of(learner, layer, group)
        y = self._output(layer, group, key, x.shape[0], sum(self.sizes[layer, group][1]))
        u = None if A is None else self.ws((group, "u", key), x.shape[0], width)
        bias, dora = self.active.bias.get((layer, group)), has_lengths(learner, layer, group)
        given = x, self.parts(learner, layer, group), bias, A, Bt, batch.adapter_slots, scale
        joined = activated is not None and self.ops.joins_activation and not dora
        if joined:
            self.ops.linear_activation_forward(*given, self.config.activation, u, y, activated)
        else:
            self.ops.linear_forward(*given, u, self.dora.before(group, key, *y.shape) if dora else y)
        count(flops_of(linear.forward_flops, learner, layer, group, batch, x.shape[0], self.sizes[layer, group]))
        if dora:
            self.dora.apply(learner, layer, group, bias, batch, key, count, y)
        if activated is not None and not joined:
            self.ops.activation_forward(y, self.config.activation, activated)
        return y

    def _output(self, layer, group, key, rows, width):
        """Where a linear group writes. With a memory, the layers' qkv lie in one buffer, from which they enter it together.
        What is only added to the residual is read once, by the norm behind it, and backward does without it; where a norm of its
        own comes first, backward reads it. What a gate is split from is read once, too."""
        delta = self.config.is_delta(layer)
        if group in ("o", "down") and self.config.norm_place == "before" or group == "qkv" and self.gate is not None and not delta:
            return self.ws((group, "shared"), rows, width)
        if group != "qkv" or self.memory is None or key != layer or delta:
            return self.ws((group, key), rows, width)
        return self.ws("raw qkv of all layers", self.attention_count, rows, width)[self.places[layer]]

    def _norm(self, x, delta, norm, key, y_key=None):
        """(res, y) of the norm behind a residual add; res is x itself when there is nothing to add, and y is res without a norm."""
        n, h = x.shape
        res = x if delta is None else self.ws(("res", key), n, h)
        if norm is None:
            return (res, res) if delta is None else (torch.add(x, delta, out=res), res)
        y = self.ws(("norm", key if y_key is None else y_key), n, h)
        stat, kind = self.stat(("stat", key), n, 2), self.norm_kind
        self.ops.norm_forward(x, delta, *norm, *kind, None if delta is None else res, y, stat)
        return res, y

    # ---- forward

    def embed(self, batch: Batch) -> torch.Tensor:
        c, w, tokens = self.config, self.active, batch.inputs.reshape(-1)
        x = self.ws("embedded", batch.rows, c.hidden_size)
        if w.table is None:
            w.embedding.gather_rows(tokens, x)
        else:
            self.ops.embedding_forward(tokens, w.table, w.positions, self.positions_of(batch), x)
        if self.adapted_embedding is not None:
            self.adapted_embedding.add(batch, x)
        return x if c.stream_scale == 1.0 else x.mul_(c.stream_scale)

    def positions_of(self, batch: Batch) -> torch.Tensor | None:
        """Where each row stands in its stream's window, int64 [N], for families that learn a table of positions."""
        if self.active.positions is None:
            return None
        places = self.ws("places", *batch.inputs.shape, dtype=torch.int64)
        return places.copy_(self.count[: places.shape[1]]).view(-1)

    @ranged("forward")
    def forward(
        self, batch: Batch, learner, lowest, embedded: torch.Tensor | None = None, handover: Handover | None = None
    ) -> torch.Tensor:
        """Hidden states [N, H] after the final norm, divided as the logits are.

        ``lowest``: (layer, group) down to which backward will go, (-1, "embed") for all the way, (layers, "head") for no further than the
        head, or None for no backward.
        ``embedded`` [N, H], which backward will read: what stands in for the token embedding (``batch.inputs`` then gives the
        shape alone). ``handover``: what enters its layer is kept there, or taken from there where that is the first layer.
        """
        first_kept = self.config.layers if lowest is None else lowest[0]
        self.active = self.weights if learner is None or learner.weights_view is None else learner.weights_view.over(self.weights)
        self.scored: tuple | None = None
        self.adapted_head = AdaptedHead.of(self, batch, learner)
        self.adapted_embedding = AdaptedEmbedding.of(self, batch, learner)
        self.learns_below = lowest is None or lowest[0] < self.config.layers
        self.embedded = embedded is not None
        if self.first:
            assert handover is not None, "the layers below are another decoder's"
            x, delta = handover.take(batch, self.ws)
        else:
            x, delta = self.embed(batch) if embedded is None else embedded, None
        self.attended_back = 0
        self.kept: list[dict[str, Any]] = []
        self.lengths = [0 if self.memory is None else self.memory.filled[s] for s in batch.streams]
        for i in range(self.first, self.config.layers):
            if handover is not None and i == handover.layer and i > self.first:
                handover.keep(batch, x, delta)
            key = i if i >= first_kept else "shared"
            x, delta = self._layer(batch, learner, i, key, x, delta)
        if handover is not None and handover.layer == self.config.layers > self.first:  # only the head is other
            handover.keep(batch, x, delta)
        res, hidden = self._norm(x, delta, self.active.final_norm, "final")
        self.final = res
        return self.scale_hidden(hidden)

    def scale_hidden(self, x: torch.Tensor) -> torch.Tensor:
        """In place: hidden states or their gradient, where logits are divided by a number. The head's own gradient reads the former."""
        c = self.config
        return x if c.logits_scaling == 1.0 else x.mul_(1 / c.logits_scaling)

    def _layer(self, batch, learner, i, key, x, delta):
        """One decoder layer: returns (residual, what is still to be added to it)."""
        count = lambda flops: self.count_forward(batch, flops)  # noqa: E731
        c, w = self.config, self.active
        again = "again" if self.recompute else None
        parallel = c.parallel_residual
        place = f"shared {i % 2}" if parallel and key == "shared" else key  # the sum is never written over one of its terms
        res1, n1 = self._norm(x, delta, w.attn_norm[i], ("attn", place), again)
        mixed, mixer = (self._delta if c.is_delta(i) else self._attend)(batch, learner, i, key, res1, n1, count)
        o = self._linear(learner, i, "o", mixed, batch, key, count)
        attended = self._post_norm(o, w.attn_post_norm[i], "attn post", key)
        res2, n2 = self._norm(res1, None if parallel else attended, w.mlp_norm[i], ("mlp", key), again)
        y = self.ws(("act", again or key), batch.rows, c.ffn_size)
        h = self._linear(learner, i, "mlp_in", n2, batch, key, count, y)
        down = self._linear(learner, i, "down", y, batch, key, count)
        kept = {"res1": res1, "n1": n1, "mixed": mixed, "o": o, "res2": res2, "n2": n2, "h": h, "y": y, "down": down}
        self.kept.append(kept | mixer)
        added = self._post_norm(down, w.mlp_post_norm[i], "mlp post", key)
        return res2, added.add_(attended) if parallel else added

    def _attend(self, batch, learner, i, key, res1, n1, count):
        """(what the linear behind attention reads, what backward needs of it)."""
        qkv_key = i if self.memory is not None else key
        raw = self._linear(learner, i, "qkv", n1, batch, qkv_key, count)
        both, raw = (None, raw) if self.gate is None else self.gate.split(raw, key)
        qkv = self._head_norm(i, raw, qkv_key)
        if self.memory is not None and self.memory.inputs is not None:
            self._reproject(batch, learner, i)
            self.ws("inputs of all layers", self.attention_count, *res1.shape)[self.places[i]].copy_(res1)
        out = mixed = self._attention(batch, i, qkv, key, count)
        if both is not None:
            mixed = self.ws(("gated", "again" if self.recompute else key), *out.shape)
            self.gate.forward(both, out, mixed)
        return mixed, {"raw": raw, "qkv": qkv, "out": out, "both": both}

    def _delta(self, batch, learner, i, key, res1, n1, count):
        """The same where the gated delta rule stands in attention's place."""
        raw = self._linear(learner, i, "qkv", n1, batch, key, count)
        return self.delta.forward(batch, self.memory, self.places[i], raw, self.active.delta[i], key, count)

    def _post_norm(self, x, norm, name, key):
        """What attention or feed-forward adds to the residual: ``x`` normalised, or as it is where no norm stands behind."""
        return x if norm is None else self._norm(x, None, norm, (name, key), "shared")[1]

    def _head_norm(self, i, raw, key):
        """qkv with normalised queries and keys, or as it is."""
        if self.active.head_norm[i] is None:
            return raw
        c = self.config
        stacked = self.memory is not None and key == i
        of_all = self.ws("normed qkv of all layers", self.attention_count, *raw.shape) if stacked else None
        qkv = self.ws(("normed qkv", key), *raw.shape) if of_all is None else of_all[self.places[i]]
        rstd = self.stat(("head stat", key), raw.shape[0], self.normed_heads)
        self.ops.head_norm_forward(raw, *self.active.head_norm[i], c.norm_eps, *self.heads, qkv, rstd)
        return qkv

    def attention_context(self, batch, i):
        """What attention is given beside its tensors: the layer's memory (or three Nones) and slots, rotations, heads, the scores' scale."""
        m = self.memory
        place = self.places[i]
        memory = (None, None, None) if m is None else (m.keys[place].rows, m.values[place].rows, m.length)
        return *memory, batch.memory_slots, *self.rope[i], *self.heads, self.config.scores_scale

    def _attention(self, batch, i, qkv, key, count):
        c, (streams, segment) = self.config, batch.inputs.shape
        out = self.ws(("attention", key), batch.rows, c.heads * c.head_dim)
        lse = self.stat(("lse", key), streams, c.heads, segment)
        self.ops.attention_forward(qkv, *self.attention_context(batch, i), out, lse, c.window(i), c.attention_softcap)
        count(streams * attention.forward_flops(segment, 0, c.heads, c.head_dim))
        return out

    def _reproject(self, batch, learner, i) -> None:
        """Memory keys and values of one layer from its kept inputs and the current weights (counted as recompute)."""
        c, m = self.config, self.memory
        assert m is not None and m.inputs is not None, "only a memory of inputs is projected anew"
        longest = m.memory.capacity if self.static else max(self.lengths)
        if not longest:
            return
        slots = batch.memory_slots.long()
        place = self.places[i]
        x = m.inputs[place].rows[slots, :longest].reshape(-1, c.hidden_size)
        _, n = self._norm(x, None, self.active.attn_norm[i], "memory")
        again = lambda flops: self.ledger.add("recompute", flops)  # noqa: E731
        raw = self._linear(learner, i, "qkv", n, batch, "memory", again)
        qkv = self._head_norm(i, raw, "memory").view(len(slots), longest, -1)
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        m.keys[place].rows[slots, :longest] = qkv[:, :, q : q + kv]
        m.values[place].rows[slots, :longest] = qkv[:, :, q + kv :]

    # ---- the score

    @ranged("score")
    def score(
        self,
        hidden,
        rows,
        targets,
        weights,
        loss: str = "cross_entropy",
        inputs: Mapping[str, torch.Tensor] = NOTHING,
        choose=None,
        nll=None,
    ):
        """Per-token NLL of the scored rows and, where ``weights`` are given, d-hidden of the weighted sum of a loss (losses.py).

        Args:
            hidden: [N, H]; rows: int64 [n], which of them are scored, each once; None: all.
            targets: int64 [n], negative: not scored after all. weights: [n] or None for the score alone.
            loss: by name; inputs: what it is given, by name (``losses.given_fields``).
            choose: from the scores [n], factors [n] on the weights of a cross-entropy.
            nll: [n], where the scores are written; None: in a buffer that the next pass reuses.

        Returns:
            nll [n] and dhidden [N, H] or None, also where nothing below the head learns, in a buffer that the next pass reuses.
            ``loss`` of a teacher is left in ``self.loss``.
        """
        h = hidden if rows is None else torch.index_select(hidden, 0, rows, out=self.ws("scored", len(rows), hidden.shape[1]))
        n = len(targets)
        nll, lse = self.stat("nll", n) if nll is None else nll, self.stat("head lse", n)
        teacher = (inputs["ids"], inputs["logp"]) if loss == "kl" else None
        if self.adapted_head is not None:
            dh, dU = self.adapted_head.score(h, rows, targets, weights, nll, lse, self.learns_below)
        else:
            dh, dU = plain_head.score(self, h, targets, weights, nll, lse, teacher), None
        if weights is None:
            return nll, None
        if loss == "importance_sampling":
            weights = losses.by_importance(nll, weights, (dh, dU), inputs["logp"], inputs["advantages"])
        if choose is not None:
            weights = losses.times(weights, (dh, dU), choose(nll))
        self.scored = (h, targets, weights, lse, teacher)
        if rows is not None and dh is not None:
            dh = self.ws("dhidden", *hidden.shape).zero_().index_copy_(0, rows, dh)
        return nll, dh

    # ---- backward

    @ranged("backward")
    def backward(self, batch: Batch, learner, lowest, dhidden: torch.Tensor | None, accumulate: bool) -> torch.Tensor | None:
        """Gradients of what learns, from dhidden [N, H] (None: of the head alone); nothing below ``lowest`` = (layer, group) is computed.

        Returns the gradient [N, H] of what entered layer 0 when ``lowest`` is (-1, "embed"), in a buffer that the next pass
        reuses, else None.
        """
        return Backward(self, batch, learner, lowest, accumulate).run(dhidden)
